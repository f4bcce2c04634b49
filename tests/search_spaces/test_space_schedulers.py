from __future__ import annotations

from typing import Any

import pytest

from orchestrator.spec import Experiment
from search_spaces import Asha, Median, Pbt, Space, check_space

KD = {"objective.kd_weight": {"loguniform": [0.1, 10]}}


def _space(parameters: dict[str, Any] | None = None, **fields: Any) -> Space:
    values = {"title": "a", "description": "b", "trials": 4, "parameters": parameters or KD}
    return Space.model_validate(values | fields)


def _pbt(parameters: dict[str, Any] | None = None, **fields: Any) -> Space:
    return _space(parameters, **{"scheduler": "pbt", "searcher": "random", "trials": None} | fields)


def test_a_scheduler_without_a_section_leaves_its_settings_to_the_search() -> None:
    space = _space()
    assert (space.scheduler, space.asha, space.median, space.pbt) == ("asha", None, None, None)


def test_the_settings_of_a_scheduler_have_defaults() -> None:
    assert _space(asha={}).asha == Asha(grace=None, reduction=3.0)
    assert _space(asha={"grace": 2, "reduction": 4}).asha == Asha(grace=2, reduction=4.0)
    assert _space(scheduler="median", median={"grace": 5}).median == Median(grace=5)
    assert _pbt(pbt={"interval": 5}).pbt == Pbt(population=8, interval=5)


def test_a_population_needs_no_section() -> None:
    assert _pbt().pbt == Pbt(population=8, interval=3)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"scheduler": "none", "asha": {}}, "asha is for scheduler 'asha', and .* is 'none'"),
        ({"median": {"grace": 2}}, "median is for scheduler 'median', and .* is 'asha'"),
        ({"pbt": {}}, "pbt is for scheduler 'pbt'"),
        ({"asha": {"reduction": 1.2}}, "greater than or equal to 1.5"),
        ({"asha": {"grace": 0}}, "greater than or equal to 1"),
        ({"scheduler": "median", "median": {"reduction": 3}}, "reduction"),
    ],
)
def test_settings_of_another_scheduler_or_out_of_range_are_refused(
    fields: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        _space(**fields)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"trials": 8}, "which has pbt.population: drop it"),
        ({"searcher": "tpe"}, "use searcher 'random', not 'tpe'"),
        ({"pbt": {"population": 1}}, "greater than or equal to 2"),
        ({"pbt": {"interval": 0}}, "greater than or equal to 1"),
        (
            {"objectives": [{"metric": "val/top1"}, {"metric": "val/loss"}]},
            "ranks trials by one metric",
        ),
    ],
)
def test_a_population_that_cannot_work_is_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        _pbt(**fields)


def test_a_population_takes_every_kind_of_domain_of_the_weights() -> None:
    space = _pbt(
        {
            "objective.ce_weight": {"choice": [0.5, 1.0]},
            "objective.kd_weight": {"loguniform": [0.1, 10]},
            "objective.dcd_weight": {"quniform": [0, 4, 1]},
            "objective.consistency_weight": {"uniform": [0, 2]},
            "objective.kd_temperature": {"randint": [1, 8]},
        }
    )
    check_space(space, Experiment, where="test")


def test_a_population_changes_only_what_can_change_while_a_run_goes_on() -> None:
    with pytest.raises(ValueError, match=r"parameters.optimizer.lr: pbt changes settings") as error:
        _pbt({"optimizer.lr": {"uniform": [0.1, 0.2]}})
    for name in ("ce_weight", "kd_weight", "dcd_weight", "consistency_weight", "kd_temperature"):
        assert f"objective.{name}" in str(error.value)


def test_a_population_has_no_conditions_between_what_it_searches() -> None:
    kd_temperature = {"uniform": [1, 8], "when": {"objective.method": ["kd", "dcd+kd"]}}
    _pbt({"objective.kd_temperature": kd_temperature})
    ce = {"objective.ce_weight": {"choice": [0.5, 1.0]}}
    kd = {"objective.kd_weight": {"uniform": [0, 1], "when": {"objective.ce_weight": 1.0}}}
    with pytest.raises(ValueError, match=r"parameters.objective.kd_weight.when.objective.ce_weig"):
        _pbt(ce | kd)

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.experiment_file import build_experiment, flatten
from orchestrator.spec import Experiment
from search_spaces import Parameter, Space, check_space, load_space, narrow


def _values(**objective: Any) -> dict[str, Any]:
    """Settings of a run."""
    values = {"name": "a", "teacher": {}, "objective": objective}
    return flatten(build_experiment(values, where="test").model_dump())


def _space(parameters: dict[str, Any], **fields: Any) -> Space:
    values = {
        "title": "a",
        "description": "b",
        "trials": 4,
        "around": {},
        "parameters": parameters,
    }
    return Space.model_validate(values | fields)


def _one(domain: dict[str, Any], value: Any, **fields: Any) -> Parameter:
    """What one parameter is narrowed to, beside another that keeps the space alive."""
    path = "student.args.x"
    space = _space({path: domain, "optimizer.lr": {"loguniform": [0.01, 1]}}, **fields)
    return narrow(space, {path: value, "optimizer.lr": 0.1}, where="run").parameters[path]


def test_a_loguniform_reaches_a_factor_to_both_sides_within_its_range() -> None:
    domain = {"loguniform": [0.1, 10]}
    assert _one(domain, 1.0).loguniform == (0.5, 2.0)
    assert _one(domain, 8).loguniform == (4.0, 10.0)
    assert _one(domain, 0.1).loguniform == (0.1, 0.2)
    assert _one(domain, 1.0, around={"factor": 4}).loguniform == (0.25, 4.0)


def test_a_uniform_reaches_a_share_of_its_width_to_both_sides_within_its_range() -> None:
    domain = {"uniform": [-8, 0]}
    assert _one(domain, -4.0).uniform == (-6.0, -2.0)  # a quarter of 8
    assert _one(domain, -1).uniform == (-3.0, 0.0)
    assert _one(domain, -4.0, around={"span": 0.5}).uniform == (-8.0, 0.0)


def test_a_choice_is_fixed_to_the_runs_value() -> None:
    assert _one({"choice": ["a", "b", None]}, None).choice == (None,)


def test_a_weight_that_the_run_did_without_is_fixed_at_zero() -> None:
    assert _one({"loguniform": [0.1, 10]}, 0.0).choice == (0.0,)


@pytest.mark.parametrize(
    ("domain", "value", "found"),
    [
        ({"loguniform": [0.1, 10]}, 20.0, r"20.0 is outside the space's loguniform \[0.1, 10.0\]"),
        ({"uniform": [0, 2]}, -0.5, "-0.5 is outside"),
        ({"uniform": [0, 2]}, "auto", "'auto' is outside"),
        ({"choice": ["a", "b"]}, "c", r"'c' is outside the space's choice \['a', 'b'\]"),
    ],
)
def test_a_value_of_the_run_outside_the_range_is_refused_by_name(
    domain: dict[str, Any], value: Any, found: str
) -> None:
    with pytest.raises(ValueError, match=f"^run: student.args.x: the run's value {found}"):
        _one(domain, value)


def test_a_value_that_the_run_lacks_is_refused_by_name() -> None:
    space = _space({"student.args.x": {"uniform": [0, 1]}})
    with pytest.raises(ValueError, match=r"^run: student\.args\.x: the run has no value for it"):
        narrow(space, {}, where="run")


def test_a_space_that_is_around_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"only a space with `around` can be narrowed"):
        narrow(load_space("dcd", Experiment), _values(), where="run")


def test_the_fine_space_around_a_softmax_run_has_no_bias_and_starts_with_the_run() -> None:
    run = _values(init_temperature=0.3, dcd_weight=4.0, kd_weight=0.5, consistency_weight=0.2)
    fine = narrow(load_space("dcd_fine", Experiment), run, where="run")
    check_space(fine, Experiment, where="narrowed")
    assert fine.around is None
    assert fine.first == {path: run[path] for path in fine.parameters}
    assert "objective.init_bias" not in fine.parameters
    domains = {path: parameter.values for path, parameter in fine.parameters.items()}
    assert domains == {
        "objective.contrast": ("softmax",),
        "objective.init_temperature": (0.15, 0.6),
        "objective.negatives": ("all",),
        "objective.dcd_weight": (2.0, 8.0),
        "objective.consistency_weight": (0.0, 0.7),  # a tenth of 5
        "objective.kd_weight": (0.25, 1.0),
        "optimizer.scalar_lr_ratio": (0.05, 0.2),
    }


def test_the_fine_space_around_a_sigmoid_run_searches_the_bias() -> None:
    fine = load_space("dcd_fine", Experiment)
    run = _values(method="dcd", contrast="sigmoid", init_bias=-4.0)
    narrowed = narrow(fine, run, where="run")
    check_space(narrowed, Experiment, where="narrowed")
    assert narrowed.parameters["objective.init_bias"].uniform == (-6.0, -2.0)  # a tenth of 20
    assert "objective.kd_weight" not in narrowed.parameters
    with pytest.raises(ValueError, match=r"objective\.init_bias: the run's value 'auto' is"):
        narrow(fine, _values(method="dcd", contrast="sigmoid"), where="run")


def test_the_temperature_does_not_go_below_the_runs_limit() -> None:
    def temperatures(init: float, limit: float) -> tuple[Any, ...]:
        run = _values(init_temperature=init, min_temperature=limit)
        fine = narrow(load_space("dcd_fine", Experiment), run, where="run")
        return fine.parameters["objective.init_temperature"].values

    assert temperatures(0.3, 0.2) == (0.2, 0.6)
    assert temperatures(0.3, 0.1) == (0.15, 0.6)
    assert temperatures(10.0, 10.0) == (10.0,)  # no room left


def test_a_run_that_uses_nothing_of_the_space_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^run: the run uses none of the numbers"):
        narrow(load_space("dcd_fine", Experiment), _values(method="ce"), where="run")


def test_a_condition_on_several_values_is_left_with_the_runs() -> None:
    when = {"objective.contrast": ["softmax", "sigmoid"]}
    space = _space(
        {
            "objective.contrast": {"choice": ["softmax", "sigmoid"]},
            "objective.dcd_weight": {"loguniform": [0.1, 10], "when": when},
        }
    )
    narrowed = narrow(space, _values(), where="run")
    check_space(narrowed, Experiment, where="narrowed")
    assert narrowed.parameters["objective.dcd_weight"].when == {"objective.contrast": ("softmax",)}


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"first": {"optimizer.lr": 0.1}}, "first is the run's own point"),
        ({"around": {"factor": 1}}, "greater than 1"),
        ({"around": {"span": 0}}, "greater than 0"),
        ({"around": {"span": 1.5}}, "less than or equal to 1"),
        ({"parameters": {"train.epochs": {"randint": [1, 9]}}}, "train.epochs: around narrows"),
    ],
)
def test_a_space_around_a_run_that_cannot_be_narrowed_is_refused(
    fields: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        _space(**{"parameters": {"optimizer.lr": {"loguniform": [0.01, 1]}}} | fields)

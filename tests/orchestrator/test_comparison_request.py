"""What a comparison is asked for: arms, seeds, names."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_experiment

from orchestrator.comparison.driver import _equal_arms, compare
from orchestrator.comparison.request import Request, open_comparison, parse_arms
from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment, changed
from orchestrator.progress import Display


def request(folder: str = "runs", **changes: Any) -> Request:
    values = tiny_experiment.tiny_values("teacher.pt", {"storage.path": folder})
    arms = parse_arms("ce,kd", [])
    options: dict[str, Any] = {
        "experiment": build_experiment(values, where="test"),
        "arms": arms,
        "reference": "ce",
        "seeds": 2,
        "metric": "test/top1",
        "vary_data": False,
    }
    return Request(**(options | changes))


def test_methods_and_overrides_are_arms() -> None:
    arms = parse_arms(
        "ce, dcd+kd", ["strong='objective.consistency_weight=2'", "a b=optimizer.lr=1e-2 seed=3"]
    )
    assert arms == {
        "ce": {"objective.method": "ce"},
        "dcd+kd": {"objective.method": "dcd+kd"},
        "strong": {"objective.consistency_weight": 2},
        "a b": {"optimizer.lr": 0.01, "seed": 3},
    }


@pytest.mark.parametrize(
    ("methods", "overrides", "expected"),
    [
        ("ce,kdd", [], "--arms: no method 'kdd'; did you mean 'kd'"),
        (None, ["only"], "--arm only: expected NAME='PATH=VALUE ...'"),
        (None, ["x=1"], "--arm x=1: expected NAME='PATH=VALUE ...'"),
        ("ce", ["ce=objective.kd_weight=1"], "the arm 'ce' is given twice"),
    ],
)
def test_wrong_arms_are_refused(methods: str | None, overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_arms(methods, overrides)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arms": parse_arms("ce", [])}, "needs at least two arms"),
        ({"reference": "kdd"}, "no arm 'kdd'; did you mean 'kd'"),
        ({"metric": "test/top2"}, "no metric 'test/top2'; did you mean 'test/top"),
        ({"arms": parse_arms("ce", ["x=seed=3"])}, "--arm x: seed is the same for all arms"),
        ({"arms": parse_arms("ce", ["x=scaling.workers=3"])}, "scaling.workers is the same"),
    ],
)
def test_requests_that_make_no_sense_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        open_comparison(request(**changes))
    assert expected in str(caught.value)


def test_an_arm_that_is_no_experiment_is_refused_by_its_name(tmp_path: Any) -> None:
    wrong = request(str(tmp_path), arms=parse_arms("ce", ["odd=objective.nothing=3"]))
    with pytest.raises(UserError, match=r"arm 'odd': objective.nothing: unknown key"):
        compare(wrong, open_comparison(wrong), display=Display())
    assert list(tmp_path.iterdir()) == []


def test_arms_that_cannot_differ_are_told() -> None:
    base = request().experiment
    arms = {
        "own": base,
        "spelt out": changed(base, {"objective.kd_weight": 1.0}),
        "bias": changed(base, {"objective.init_bias": -3.0}),
        "other": changed(base, {"objective.kd_weight": 2.0}),
        "sigmoid": changed(base, {"objective.contrast": "sigmoid"}),
        "sigmoid bias": changed(
            base, {"objective.contrast": "sigmoid", "objective.init_bias": -3.0}
        ),
    }
    assert _equal_arms(arms) == [
        "arms 'own' and 'spelt out' are the same: they cannot differ",
        "arms 'own' and 'bias' are the same: they cannot differ",
    ]


def test_the_number_of_seeds_may_grow_but_arms_may_not_change(tmp_path: Any) -> None:
    from orchestrator.trials.group import write_group

    write_group(open_comparison(request(str(tmp_path))))
    assert open_comparison(request(str(tmp_path), seeds=9)).exists
    other = request(str(tmp_path), arms=parse_arms("ce,kd,dcd", []))
    with pytest.raises(UserError, match=r"arms\.dcd"):
        open_comparison(other)

"""Points from Optuna: order, conditions, memory."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from orchestrator.search.study import Study, Tried, distribution, start_up_trials
from search_spaces import Parameter, Space

BASE = {"objective.method": "dcd", "optimizer.lr": 0.05}


def space(**changes: Any) -> Space:
    values: dict[str, Any] = {
        "title": "t",
        "description": "d",
        "trials": 16,
        "parameters": {
            "objective.contrast": {"choice": ["softmax", "sigmoid"]},
            "objective.init_bias": {
                "uniform": [-8.0, 0.0],
                "when": {"objective.contrast": "sigmoid"},
            },
            "optimizer.lr": {"loguniform": [0.01, 1.0]},
        },
        "first": {"objective.contrast": "softmax", "optimizer.lr": 0.05},
    }
    return Space.model_validate(values | changes)


def study(of: Space, *, tried: list[Tried] | None = None, seed: int = 0, num: int = 16) -> Study:
    return Study(of, BASE, num_trials=num, seed=seed, tried=tried or [])


def ask_and_tell(points: Study, number: int, value: float = 1.0) -> dict[str, Any]:
    name = f"{number:04d}"
    point = points.ask(name)
    assert point is not None
    points.report(name, 1, value)
    points.tell(name, [value], failed=False)
    return point


def test_the_first_point_is_tried_first() -> None:
    assert study(space()).ask("0001") == {"objective.contrast": "softmax", "optimizer.lr": 0.05}


def test_a_conditional_setting_is_drawn_only_where_it_acts() -> None:
    points = study(space())
    drawn = [ask_and_tell(points, number) for number in range(30)]
    assert {"softmax", "sigmoid"} == {point["objective.contrast"] for point in drawn}
    for point in drawn:
        assert ("objective.init_bias" in point) == (point["objective.contrast"] == "sigmoid")


def test_the_same_seed_draws_the_same_points_and_another_seed_others() -> None:
    def draw(seed: int) -> list[dict[str, Any]]:
        points = study(space(), seed=seed)
        return [ask_and_tell(points, number) for number in range(5)]

    assert draw(1) == draw(1)
    assert draw(1)[1:] != draw(2)[1:]


def test_tpe_goes_where_the_scores_are_high() -> None:
    one = space(parameters={"optimizer.lr": {"uniform": [0.0, 1.0]}}, first={})
    points = study(one, num=40)
    drawn = []
    for number in range(40):
        point = points.ask(f"{number}")
        assert point is not None
        drawn.append(point["optimizer.lr"])
        points.tell(f"{number}", [-((drawn[-1] - 0.8) ** 2)], failed=False)
    late = drawn[20:]
    near = sum(abs(value - 0.8) < 0.2 for value in late) / len(late)
    assert near > 0.6  # chance would put 40 % there


def test_stopped_trials_are_told_as_pruned_with_their_scores_and_failed_ones_as_failed() -> None:
    points = study(space())
    points.ask("a")
    points.report("a", 1, 50.0)
    points.report("a", 2, 60.0)
    points.tell("a", None, failed=False)
    points.ask("b")
    points.tell("b", None, failed=True)
    stopped, failed = points.trials
    assert (stopped.state, stopped.intermediate_values) == (TrialState.PRUNED, {1: 50.0, 2: 60.0})
    assert failed.state == TrialState.FAIL


def test_a_new_session_knows_what_the_last_one_tried() -> None:
    softmax = {"objective.contrast": "softmax", "optimizer.lr": 0.05}
    sigmoid = {"objective.contrast": "sigmoid", "objective.init_bias": -2.0, "optimizer.lr": 0.1}
    points = study(
        space(),
        tried=[
            Tried("0001", softmax, {1: 50.0, 2: 70.0}, [70.0], failed=False, ended=True),
            Tried("0002", sigmoid, {1: 20.0}, None, failed=False, ended=True),
            Tried("0003", {**softmax, "optimizer.lr": 0.2}, {}, None, failed=True, ended=True),
            Tried("0004", {**softmax, "optimizer.lr": 0.3}, {1: 30.0}, None, False, ended=False),
        ],
    )
    states = [trial.state for trial in points.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.params for trial in points.trials][1] == sigmoid
    assert points.trials[3].intermediate_values == {1: 30.0}
    points.report("0004", 1, 35.0)  # a member of a population tells its last epoch again
    assert points.trials[3].intermediate_values == {1: 30.0}
    points.report("0004", 2, 40.0)  # the one that goes on is told like any other
    points.tell("0004", [40.0], failed=False)
    assert points.trials[3].value == 40.0
    assert points.ask("0005") not in (softmax, sigmoid)


def test_a_session_that_goes_on_does_not_repeat_the_draws_of_the_one_before() -> None:
    one = space(first={}, searcher="random")
    before = study(one)
    drawn = [ask_and_tell(before, number) for number in range(3)]
    tried = [Tried(str(i), p, {}, [1.0], False, True) for i, p in enumerate(drawn)]
    after = study(one, tried=tried)
    assert [after.ask(f"n{i}") for i in range(3)] != drawn


def test_a_space_that_is_used_up_has_no_other_point() -> None:
    small = space(parameters={"objective.negatives": {"choice": ["all", "other_class"]}}, first={})
    points = study(small)
    found = [ask_and_tell(points, 1), ask_and_tell(points, 2)]
    assert sorted(point["objective.negatives"] for point in found) == ["all", "other_class"]
    assert points.ask("0003") is None


def test_a_grid_gives_every_point_once_in_order() -> None:
    grid = space(
        searcher="grid",
        trials=None,
        first={},
        parameters={
            "optimizer.lr": {"grid": [0.1, 0.2]},
            "objective.negatives": {"grid": ["all", "other_class"]},
        },
    )
    points = study(grid)
    found = [ask_and_tell(points, number) for number in range(4)]
    assert [(p["optimizer.lr"], p["objective.negatives"]) for p in found] == [
        (0.1, "all"),
        (0.1, "other_class"),
        (0.2, "all"),
        (0.2, "other_class"),
    ]
    assert points.ask("more") is None


def test_two_goals_are_told_together() -> None:
    two = space(
        metric=None,
        mode=None,
        scheduler="none",
        objectives=[{"metric": "val/top1"}, {"metric": "student/parameters"}],
    )
    points = study(Space.model_validate({k: v for k, v in two.model_dump().items() if v}))
    points.ask("a")
    points.report("a", 1, 50.0)  # no intermediate values with several goals
    points.tell("a", [90.0, 1000.0], failed=False)
    assert points.trials[0].values == [90.0, 1000.0]


@pytest.mark.parametrize(
    ("num_trials", "expected"), [(1, 3), (12, 3), (16, 4), (32, 8), (40, 10), (1000, 10)]
)
def test_a_quarter_of_the_trials_starts_by_chance(num_trials: int, expected: int) -> None:
    assert start_up_trials(num_trials) == expected


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ({"uniform": [0, 2]}, optuna.distributions.FloatDistribution(0, 2)),
        ({"loguniform": [0.1, 10]}, optuna.distributions.FloatDistribution(0.1, 10, log=True)),
        ({"quniform": [0.0, 1.0, 0.25]}, optuna.distributions.FloatDistribution(0, 1, step=0.25)),
        ({"quniform": [16, 64, 16]}, optuna.distributions.IntDistribution(16, 64, step=16)),
        ({"randint": [1, 4]}, optuna.distributions.IntDistribution(1, 4)),
        ({"choice": ["a", None]}, optuna.distributions.CategoricalDistribution(("a", None))),
    ],
)
def test_each_domain_is_optunas_of_the_same_ends(domain: dict[str, Any], expected: Any) -> None:
    assert distribution(Parameter.model_validate(domain)) == expected

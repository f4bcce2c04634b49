from __future__ import annotations

from typing import Any

import pytest

from search_spaces import Goal, Space


def _space(**fields: Any) -> Space:
    parameters = {"optimizer.lr": {"uniform": [0.1, 0.2]}}
    values = {"title": "a", "description": "b", "trials": 4, "parameters": parameters}
    return Space.model_validate(values | fields)


def _several(*metrics: str, **fields: Any) -> Space:
    objectives = [{"metric": metric} for metric in metrics]
    return _space(objectives=objectives, **{"scheduler": "none", **fields})


def test_one_metric_is_one_goal_whose_mode_follows_from_it() -> None:
    assert _space().goals == (Goal(metric="val/top1", mode="max"),)
    assert _space(metric="val/top5").goals == (Goal(metric="val/top5", mode="max"),)
    assert _space(metric="val/loss").goals == (Goal(metric="val/loss", mode="min"),)
    assert _space(metric="val/loss", mode="min").goals == _space(metric="val/loss").goals


def test_several_objectives_are_goals_in_their_order() -> None:
    space = _space(
        objectives=[{"metric": "val/top1", "mode": "max"}, {"metric": "student/parameters"}],
        scheduler="none",
        searcher="random",
    )
    assert [(goal.metric, goal.mode) for goal in space.goals] == [
        ("val/top1", "max"),
        ("student/parameters", "min"),
    ]
    assert [goal.mode for goal in _several("val/loss", "val/top5").goals] == ["min", "max"]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"metric": "val/top2"}, "there is no metric 'val/top2'; did you mean 'val/top"),
        ({"metric": "xyz"}, "there is no metric 'xyz'; metrics: val/top1, val/top5, val/loss"),
        ({"metric": "test/loss"}, "'test/loss' would tune on the test split: use a val/ metric"),
        ({"mode": "min"}, "mode 'min' would look for the worst val/top1: use 'max'"),
        ({"metric": "val/loss", "mode": "max"}, "would look for the worst val/loss: use 'min'"),
        ({"metric": "student/parameters"}, "let a val/ metric come first under `objectives`"),
        (
            {"metric": "student/latency_ms"},
            "latency is measured after the search, alone on the machine, for every finished trial, "
            "and the Pareto front over it is in the report: use 'student/parameters' here",
        ),
    ],
)
def test_what_cannot_be_searched_by_is_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=r"metric|mode") as caught:
        _space(**fields)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "fields", "rule"),
    [
        (["val/top1"], {}, "objectives takes two or more"),
        (["val/top1", "val/loss"], {"metric": "val/top1"}, "metric and objectives exclude"),
        (["val/top1", "val/loss"], {"mode": "max"}, "mode and objectives exclude"),
        (["val/top1", "val/top1"], {}, "has 'val/top1' twice"),
        (["student/parameters", "val/top1"], {}, "let a val/ metric come first"),
        (["val/top1", "student/latency_ms"], {}, "use 'student/parameters' here"),
        (["val/top1", "test/top1"], {}, "would tune on the test split"),
        (["val/top1", "val/los"], {}, "did you mean 'val/loss'?"),
        (["val/top1", "val/loss"], {"scheduler": "asha"}, "with several objectives use 'none'"),
        (
            ["val/top1", "val/loss"],
            {
                "searcher": "grid",
                "trials": None,
                "parameters": {"optimizer.lr": {"grid": [0.1, 0.2]}},
            },
            "with several objectives use 'tpe' or 'random'",
        ),
    ],
)
def test_objectives_that_do_not_go_together_are_refused(
    metrics: list[str], fields: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValueError, match="objective") as caught:
        _several(*metrics, **fields)
    assert rule in str(caught.value)


def test_an_objective_that_looks_for_the_worst_is_refused() -> None:
    objectives = [{"metric": "val/top1"}, {"metric": "student/parameters", "mode": "max"}]
    with pytest.raises(ValueError, match="worst student/parameters: use 'min'"):
        _space(objectives=objectives, scheduler="none")


def test_a_mode_that_is_none_is_told_with_what_is_allowed() -> None:
    objectives = [{"metric": "val/top1", "mode": "up"}, {"metric": "student/parameters"}]
    with pytest.raises(ValueError, match="should be 'max' or 'min'"):
        _space(objectives=objectives, scheduler="none")

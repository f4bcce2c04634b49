from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment, changed, flatten
from orchestrator.spec import Experiment
from search_spaces import (
    Space,
    corner_points,
    first_point,
    grid_points,
    inert_parameters,
    is_active,
    load_space,
)


def _space(parameters: dict[str, Any], **fields: Any) -> Space:
    values = {"title": "a", "description": "b", "trials": 4, "parameters": parameters}
    return Space.model_validate(values | fields)


def _grid(parameters: dict[str, Any], **fields: Any) -> Space:
    return _space(parameters, searcher="grid", trials=None, **fields)


def _base(**updates: Any) -> dict[str, Any]:
    """Settings of the default experiment, with some of the objective's changed."""
    experiment = build_experiment({"name": "a", "teacher": {}}, where="test")
    updates = {f"objective.{name}": value for name, value in updates.items()}
    return flatten(changed(experiment, updates).model_dump())


CHAIN = {
    "objective.contrast": {"choice": ["softmax", "sigmoid"], "when": {"objective.method": "dcd"}},
    "objective.init_bias": {"uniform": [-8, 0], "when": {"objective.contrast": "sigmoid"}},
}


# Whether a parameter is searched


def test_a_condition_on_what_is_not_searched_looks_at_the_experiment() -> None:
    space = _space(CHAIN)
    contrast = space.parameters["objective.contrast"]
    assert is_active(contrast, {}, space, _base(method="dcd"))
    assert not is_active(contrast, {}, space, _base(method="kd"))
    assert not is_active(contrast, {}, space, {})


def test_a_condition_on_what_is_searched_looks_at_the_point_and_not_at_the_experiment() -> None:
    space, base = _space(CHAIN), _base(method="dcd", contrast="sigmoid")
    bias = space.parameters["objective.init_bias"]
    assert is_active(bias, {"objective.contrast": "sigmoid"}, space, base)
    assert not is_active(bias, {"objective.contrast": "softmax"}, space, base)
    assert not is_active(bias, {}, space, base)


def test_all_conditions_must_hold() -> None:
    when = {"objective.negatives": "all", "objective.method": ["dcd", "dcd+kd"]}
    space = _space(
        {
            "objective.negatives": {"choice": ["all", "other_class"]},
            "objective.dcd_weight": {"uniform": [0, 1], "when": when},
        }
    )
    weight = space.parameters["objective.dcd_weight"]
    assert is_active(weight, {"objective.negatives": "all"}, space, _base(method="dcd"))
    assert not is_active(weight, {"objective.negatives": "all"}, space, _base(method="kd"))
    assert not is_active(weight, {"objective.negatives": "other_class"}, space, _base(method="dcd"))


# The first point


def test_the_first_point_has_what_is_active_for_the_experiment() -> None:
    space = load_space("dcd", Experiment)
    assert first_point(space, _base()) == space.first
    assert first_point(space, _base(method="kd")) == {"objective.kd_weight": 1.0}
    assert first_point(space, _base(method="ce")) == {}
    assert "objective.kd_weight" not in first_point(space, _base(method="dcd"))


# The grid


def test_a_grid_has_every_combination_once_in_order() -> None:
    space = _grid({"optimizer.lr": {"grid": [0.2, 0.1]}, "train.batch_size": {"grid": [32, 64]}})
    assert [tuple(point.values()) for point in grid_points(space, _base())] == [
        (0.2, 32),
        (0.2, 64),
        (0.1, 32),
        (0.1, 64),
    ]


def test_a_grid_does_not_repeat_a_point_for_a_parameter_that_is_not_active_there() -> None:
    parameters = {
        "objective.contrast": {"grid": ["softmax", "sigmoid"]},
        "objective.init_bias": {"grid": [-4, -2], "when": {"objective.contrast": "sigmoid"}},
        "objective.kd_weight": {"grid": [1, 2], "when": {"objective.method": "dcd+kd"}},
    }
    assert grid_points(_grid(parameters), _base(method="dcd")) == [
        {"objective.contrast": "softmax"},
        {"objective.contrast": "sigmoid", "objective.init_bias": -4},
        {"objective.contrast": "sigmoid", "objective.init_bias": -2},
    ]
    assert len(grid_points(_grid(parameters), _base(method="dcd+kd"))) == 6


def test_a_grid_starts_with_the_first_point() -> None:
    space = _grid({"optimizer.lr": {"grid": [0.3, 0.2, 0.1]}}, first={"optimizer.lr": 0.2})
    assert [point["optimizer.lr"] for point in grid_points(space, _base())] == [0.2, 0.3, 0.1]


def test_a_space_that_is_no_grid_has_no_list_of_points() -> None:
    with pytest.raises(ValueError, match="searcher 'tpe' has no list of points"):
        grid_points(load_space("optim", Experiment), _base())


# Corners


def test_corners_vary_one_setting_at_a_time_from_the_first_point() -> None:
    space = _space(
        {
            "optimizer.lr": {"loguniform": [0.01, 1]},
            "objective.negatives": {"choice": ["all", "other_class"]},
        },
        first={"optimizer.lr": 0.05, "objective.negatives": "all"},
    )
    assert corner_points(space, _base()) == [
        ("the starting point", {"optimizer.lr": 0.05, "objective.negatives": "all"}),
        ("optimizer.lr = 0.01", {"optimizer.lr": 0.01, "objective.negatives": "all"}),
        ("optimizer.lr = 1.0", {"optimizer.lr": 1.0, "objective.negatives": "all"}),
        (
            "objective.negatives = other_class",
            {"optimizer.lr": 0.05, "objective.negatives": "other_class"},
        ),
    ]


def test_without_a_first_point_corners_start_from_the_experiment_where_it_lies_inside() -> None:
    parameters = {
        "optimizer.lr": {"loguniform": [0.01, 1]},  # 0.05 in the experiment
        "optimizer.weight_decay": {"loguniform": [0.01, 1]},  # 0.0005: outside
        "optimizer.momentum": {"uniform": [0.1, 0.5]},  # 0.9: outside
        "train.epochs": {"randint": [1, 10]},  # 240: outside
        "train.batch_size": {"quniform": [128, 256, 32]},  # 64: outside
    }
    name, start = corner_points(_space(parameters), _base())[0]
    assert name == "the starting point"
    assert start == pytest.approx(
        {
            "optimizer.lr": 0.05,
            "optimizer.weight_decay": 0.1,
            "optimizer.momentum": 0.3,
            "train.epochs": 5,
            "train.batch_size": 192,
        }
    )
    assert isinstance(start["train.epochs"], int)
    assert isinstance(start["train.batch_size"], int)


def test_corners_reach_the_ends_of_what_is_not_active_at_the_first_point() -> None:
    space = _space(CHAIN, first={"objective.contrast": "softmax"})
    assert corner_points(space, _base(method="dcd")) == [
        ("the starting point", {"objective.contrast": "softmax"}),
        (
            "objective.contrast = sigmoid",
            {"objective.contrast": "sigmoid", "objective.init_bias": -4.0},
        ),
        (
            "objective.init_bias = -8.0 with objective.contrast = sigmoid",
            {"objective.contrast": "sigmoid", "objective.init_bias": -8.0},
        ),
        (
            "objective.init_bias = 0.0 with objective.contrast = sigmoid",
            {"objective.contrast": "sigmoid", "objective.init_bias": 0.0},
        ),
    ]


def test_corners_have_nothing_of_what_can_not_be_active() -> None:
    space = load_space("dcd", Experiment)
    assert corner_points(space, _base(method="ce")) == [("the starting point", {})]
    kd = [settings for _, settings in corner_points(space, _base(method="kd"))]
    assert kd == [{"objective.kd_weight": value} for value in (1.0, 0.1, 10.0)]


def test_a_corner_of_a_space_can_be_refused_by_the_experiment() -> None:
    experiment = build_experiment(
        {"name": "a", "teacher": {}, "objective": {"min_temperature": 0.2}}, where="test"
    )
    points = corner_points(load_space("dcd", Experiment), flatten(experiment.model_dump()))
    with pytest.raises(UserError, match="below min_temperature"):
        changed(experiment, dict(points)["objective.init_temperature = 0.1"])


# What makes no difference


def test_a_space_that_suits_the_experiment_has_nothing_inert() -> None:
    assert inert_parameters(load_space("dcd", Experiment), _base()) == []
    assert inert_parameters(load_space("student", Experiment), _base()) == []


def test_a_parameter_that_the_method_ignores_is_named_with_what_it_needs() -> None:
    space = load_space("dcd", Experiment)
    assert inert_parameters(space, _base(method="dcd")) == [
        "objective.kd_weight is not searched: it needs objective.method kd or dcd+kd and the "
        "experiment has dcd"
    ]
    sentences = inert_parameters(space, _base(method="ce"))
    assert len(sentences) == len(space.parameters)  # nothing to search
    assert (
        "objective.init_bias is not searched: it needs objective.contrast sigmoid, which is not "
        "searched either" in sentences
    )


def test_the_factor_of_steps_does_nothing_under_another_schedule() -> None:
    space = _space({"schedule.gamma": {"uniform": [0.1, 0.5]}})
    assert inert_parameters(space, _base()) == []
    assert inert_parameters(space, _base() | {"schedule.kind": "cosine"}) == [
        "schedule.gamma is searched without effect: the trials' schedule is cosine"
    ]


def test_a_condition_on_a_section_that_the_experiment_lacks_does_not_hold() -> None:
    when = {"teacher.fit.epochs": 3}
    space = _space({"optimizer.lr": {"uniform": [0.1, 0.2], "when": when}})
    (sentence,) = inert_parameters(space, _base())
    assert sentence.endswith("it needs teacher.fit.epochs 3 and the experiment has none")


def test_null_and_true_are_told_as_yaml_spells_them() -> None:
    when = {"student.checkpoint": None, "data.flip": True}
    space = _space({"student.source": {"choice": ["resnet8", "resnet20"], "when": when}})
    assert inert_parameters(space, _base()) == []
    assert inert_parameters(space, _base() | {"student.checkpoint": "a.pt"}) == [
        "student.source is not searched: it needs student.checkpoint null and the experiment has "
        "a.pt"
    ]
    assert inert_parameters(space, _base() | {"data.flip": False}) == [
        "student.source is not searched: it needs data.flip true and the experiment has false"
    ]


def test_settings_of_a_term_without_weight_are_named() -> None:
    temperature = {"objective.kd_temperature": {"uniform": [1, 8]}}
    assert inert_parameters(_space(temperature), _base(method="dcd")) == [
        "objective.kd_temperature is searched without effect: objective.kd_weight is 0"
    ]
    assert inert_parameters(_space(temperature), _base(method="kd")) == []
    weight = {"objective.kd_weight": {"uniform": [0, 1]}}
    assert inert_parameters(_space(weight | temperature), _base(kd_weight=0.0)) == []
    off = {"objective.kd_weight": {"choice": [0]}}
    assert len(inert_parameters(_space(off | temperature), _base())) == 1


def test_a_weight_that_a_method_or_a_schedule_may_bring_is_not_taken_for_off() -> None:
    temperature = {"objective.kd_temperature": {"uniform": [1, 8]}}
    method = {"objective.method": {"choice": ["dcd", "kd"]}}
    assert inert_parameters(_space(method | temperature), _base(method="dcd")) == []
    later = _base(kd_weight=0.0) | {"objective.schedule": [{"epoch": 5, "kd_weight": 1.0}]}
    assert inert_parameters(_space(temperature), later) == []

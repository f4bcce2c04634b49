"""The experiment's sections: defaults, ranges, rules between fields, documentation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment, changed, identity, identity_hash
from orchestrator.spec import (
    DataSpec,
    Experiment,
    FitSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ScalingSpec,
    ScheduleSpec,
    StudentSpec,
    TeacherSpec,
    TrainSpec,
    WeightChange,
)

TEACHER = {"source": "resnet8", "checkpoint": "teacher.pt"}


def experiment(**sections: Any) -> Experiment:
    return Experiment.model_validate({"name": "x", "teacher": TEACHER, **sections})


def test_the_defaults_are_the_papers_cifar_recipe() -> None:
    spec = experiment()
    objective, optimizer = spec.objective, spec.optimizer
    assert (objective.method, objective.contrast, objective.negatives) == (
        "dcd+kd",
        "softmax",
        "all",
    )
    # alpha 0.5, beta 1, lambda 1, cross entropy 1, KD at temperature 4
    assert objective.consistency_weight == 0.5
    assert objective.dcd_weight == objective.kd_weight == objective.ce_weight == 1.0
    assert objective.kd_temperature == 4.0
    # tau = 1 is T = exp(-1); the multiplier's limit of 10 is T = 0.1; b = 0; heads of 128
    assert objective.init_temperature == pytest.approx(0.36787944)
    assert objective.min_temperature == 0.1
    assert objective.init_bias == "auto"
    assert objective.projection_dim == 128
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("sgd", 0.05, 0.9)
    assert (optimizer.weight_decay, optimizer.nesterov) == (5e-4, False)
    assert optimizer.scalar_lr_ratio == 0.1
    assert optimizer.max_grad_norm is None
    assert (spec.train.epochs, spec.train.batch_size, spec.train.accumulate) == (240, 64, 1)
    assert [240 * share for share in spec.schedule.milestones] == [150, 180, 210]
    assert (spec.schedule.kind, spec.schedule.gamma) == ("step", 0.1)
    assert (spec.data.augment, spec.data.crop_padding, spec.data.flip) == ("crop_flip", 4, True)
    assert spec.data.val_fraction == 0.1


def test_a_teacher_is_fitted_with_the_same_recipe() -> None:
    fit, spec = FitSpec(), experiment()
    assert (fit.epochs, fit.batch_size) == (spec.train.epochs, spec.train.batch_size)
    assert fit.optimizer == spec.optimizer
    assert fit.schedule == spec.schedule


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        # cross entropy, KD, DCD, consistency
        ("ce", (1, 0, 0, 0)),
        ("kd", (1, 1, 0, 0)),
        ("dcd", (1, 0, 1, 0.5)),
        ("dcd+kd", (1, 1, 1, 0.5)),
    ],
)
def test_the_method_sets_the_weights(method: str, weights: tuple[float, ...]) -> None:
    spec = ObjectiveSpec.model_validate({"method": method})
    found = (spec.ce_weight, spec.kd_weight, spec.dcd_weight, spec.consistency_weight)
    assert found == weights


def test_an_explicit_weight_wins_over_the_methods() -> None:
    spec = ObjectiveSpec.model_validate({"method": "dcd", "dcd_weight": 0.25, "ce_weight": 0})
    assert (spec.ce_weight, spec.dcd_weight, spec.consistency_weight) == (0.0, 0.25, 0.5)


def test_an_empty_weight_takes_the_methods() -> None:
    assert ObjectiveSpec.model_validate({"method": "kd", "kd_weight": None}).kd_weight == 1.0


@pytest.mark.parametrize(
    ("method", "weight"),
    [
        ("ce", "kd_weight"),
        ("ce", "dcd_weight"),
        ("ce", "consistency_weight"),
        ("kd", "dcd_weight"),
        ("kd", "consistency_weight"),
        ("dcd", "kd_weight"),
    ],
)
def test_a_weight_that_the_method_ignores_is_refused_unless_it_is_zero(
    method: str, weight: str
) -> None:
    with pytest.raises(ValidationError, match=f"method '{method}' ignores {weight}: drop it"):
        ObjectiveSpec.model_validate({"method": method, weight: 0.5})
    spec = ObjectiveSpec.model_validate({"method": method, weight: 0})
    assert getattr(spec, weight) == 0.0


SCHEDULE = [
    {"epoch": 3, "kd_weight": 0, "kd_temperature": 2},
    {"epoch": 5, "dcd_weight": 0.25},
    {"epoch": 6, "kd_weight": 2, "consistency_weight": 0},
]


@pytest.mark.parametrize(
    ("epoch", "weights"),
    [
        # cross entropy, KD, its temperature, DCD, consistency
        (1, (1, 1, 4, 1, 0.5)),
        (2, (1, 1, 4, 1, 0.5)),
        (3, (1, 0, 2, 1, 0.5)),
        (4, (1, 0, 2, 1, 0.5)),
        (5, (1, 0, 2, 0.25, 0.5)),
        (6, (1, 2, 2, 0.25, 0)),
        (100, (1, 2, 2, 0.25, 0)),
    ],
)
def test_a_changed_weight_holds_from_its_epoch_on(epoch: int, weights: tuple[float, ...]) -> None:
    now = ObjectiveSpec.model_validate({"schedule": SCHEDULE}).at(epoch)
    found = (now.ce_weight, now.kd_weight, now.kd_temperature, now.dcd_weight)
    assert (*found, now.consistency_weight) == weights
    assert now.schedule == ()
    assert (now.method, now.projection_dim) == ("dcd+kd", 128)


@pytest.mark.parametrize(
    ("values", "kd", "dcd"),
    [
        ({"method": "ce"}, False, False),
        ({"method": "kd"}, True, False),
        ({"kd_weight": 0}, False, True),
        ({"kd_weight": 0, "schedule": [{"epoch": 9, "kd_weight": 1}]}, True, True),
        ({"dcd_weight": 0, "schedule": [{"epoch": 9, "dcd_weight": 1}]}, True, True),
        ({"schedule": [{"epoch": 2, "kd_weight": 0, "dcd_weight": 0}]}, True, True),
        ({"dcd_weight": 0, "schedule": [{"epoch": 9, "kd_weight": 0}]}, True, False),
    ],
)
def test_what_any_epoch_uses_is_used(values: dict[str, Any], kd: bool, dcd: bool) -> None:
    spec = ObjectiveSpec.model_validate(values)
    assert (spec.uses_kd, spec.uses_dcd) == (kd, dcd)


def test_a_change_is_written_with_what_it_changes_and_no_more() -> None:
    spec = build_experiment(_plain(objective={"schedule": SCHEDULE}), where="test")
    assert spec.model_dump(mode="json")["objective"]["schedule"] == SCHEDULE
    assert build_experiment(spec.model_dump(mode="json"), where="test") == spec
    assert changed(spec, {}) == spec


def test_the_schedule_of_weights_is_part_of_what_a_run_is() -> None:
    without = build_experiment(_plain(), where="test")
    assert changed(without, {"objective.schedule": []}) == without
    schedules = [SCHEDULE, SCHEDULE[:2], [{"epoch": 3, "kd_weight": 0.5}]]
    others = [changed(without, {"objective.schedule": schedule}) for schedule in schedules]
    assert [identity(other)["objective.schedule"] for other in others] == schedules
    assert len({identity_hash(spec) for spec in (without, *others)}) == 4


def test_another_method_takes_no_schedule_of_weights_that_it_ignores() -> None:
    spec = build_experiment(_plain(objective={"schedule": SCHEDULE}), where="test")
    with pytest.raises(UserError) as caught:
        changed(spec, {"objective.method": "kd"})
    assert str(caught.value).endswith(
        "objective: schedule: the change at epoch 5 gives dcd_weight, which method 'kd' ignores: "
        "drop it, or change the method"
    )
    kd = changed(spec, {"objective.method": "kd", "objective.schedule": SCHEDULE[:1]})
    assert (kd.objective.at(3).kd_weight, kd.objective.dcd_weight) == (0, 0)


def test_no_change_comes_after_the_last_epoch() -> None:
    objective = {"schedule": [{"epoch": 3, "ce_weight": 2}, {"epoch": 8, "ce_weight": 1}]}
    assert experiment(objective=objective, train={"epochs": 8}).objective.at(8).ce_weight == 1
    with pytest.raises(
        ValidationError, match=r"change at epoch 8 comes after the last of 7 epochs"
    ):
        experiment(objective=objective, train={"epochs": 7})


def _plain(**sections: Any) -> dict[str, Any]:
    return {"name": "x", "teacher": TEACHER, **sections}


@pytest.mark.parametrize(
    ("section", "values", "text"),
    [
        (ObjectiveSpec, {"ce_weight": 0, "kd_weight": 0, "dcd_weight": 0}, "all weights are 0"),
        (ObjectiveSpec, {"method": "ce", "ce_weight": 0}, "all weights are 0"),
        (
            ObjectiveSpec,
            {"init_temperature": 0.05},
            "init_temperature 0.05 is below min_temperature 0.1",
        ),
        (
            WeightChange,
            {"epoch": 2},
            "the change at epoch 2 changes nothing: give one of ce_weight,",
        ),
        (
            ObjectiveSpec,
            {"schedule": [{"epoch": 4, "ce_weight": 1}, {"epoch": 3, "ce_weight": 2}]},
            "the change at epoch 3 comes after the one at epoch 4: list each epoch once",
        ),
        (
            ObjectiveSpec,
            {"schedule": [{"epoch": 4, "ce_weight": 1}, {"epoch": 4, "kd_weight": 2}]},
            "the change at epoch 4 comes after the one at epoch 4: list each epoch once",
        ),
        (
            ObjectiveSpec,
            {
                "method": "kd",
                "schedule": [{"epoch": 2, "ce_weight": 0}, {"epoch": 4, "kd_weight": 0}],
            },
            "the change at epoch 4 makes all weights 0: nothing would be learned",
        ),
        (
            ObjectiveSpec,
            {"method": "dcd", "schedule": [{"epoch": 2, "kd_temperature": 3}]},
            "gives kd_temperature, which method 'dcd' ignores: drop it",
        ),
        (DataSpec, {"limit": 5, "labels_per_class": 5}, "limit and labels_per_class exclude"),
        (DataSpec, {"limit": 5, "imbalance": 5}, "limit and imbalance exclude"),
        (DataSpec, {"classes": [0, 1], "num_classes": 3}, "classes and num_classes exclude"),
        (DataSpec, {"classes": [0, 1, 0]}, "classes names one twice: [0, 1, 0]"),
        (DataSpec, {"resize_by": "center_crop"}, "needs resize: give the size"),
        (DataSpec, {"args": {"x": 1}}, "args are for a module:function, not for source 'digits'"),
        (
            DataSpec,
            {"source": "m:f", "path": "x"},
            "takes neither path nor test_path: pass them in",
        ),
        (DataSpec, {"download": True}, "digits cannot be fetched, only cifar10, cifar100, stl10"),
        (
            DataSpec,
            {"source": "imagenet", "path": "x", "test_path": "y"},
            "imagenet has its own test split",
        ),
        (DataSpec, {"source": "parquet"}, "path is needed for source 'parquet'"),
        (DataSpec, {"path": "x"}, "'digits' is built in and takes neither path nor"),
        (
            DataSpec,
            {"source": "imagefolder", "path": "x", "test_path": "y", "test_fraction": 0.1},
            "test_path and test_fraction exclude each other",
        ),
        (
            DataSpec,
            {"source": "cifar10", "path": "x", "test_fraction": 0.1},
            "cifar10 has its own test split",
        ),
        (DataSpec, {"normalize": {"mean": [0, 0], "std": [1]}}, "mean has 2 values and std 1"),
        (OptimizerSpec, {"name": "adamw", "nesterov": True}, "nesterov needs name 'sgd'"),
        (OptimizerSpec, {"momentum": 0, "nesterov": True}, "a momentum above 0"),
        (TeacherSpec, {"checkpoint": "x", "fit": {}}, "checkpoint and fit exclude each other"),
        (TeacherSpec, {"checkpoint": "x", "weights": "y"}, "checkpoint and weights exclude"),
        (TeacherSpec, {"source": "mlflow:models:/m/1", "fit": {}}, "brings its weights: drop fit"),
        (TeacherSpec, {"fit": {}, "num_classes": 3}, "fit and num_classes exclude each other"),
        (StudentSpec, {"checkpoint": "x", "weights": "y"}, "checkpoint and weights exclude"),
        (StudentSpec, {"source": "mlflow:models:/m/1", "checkpoint": "x"}, "brings its weights"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    section: Any, values: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate(values)
    assert text in str(caught.value)


NEEDED: dict[Any, dict[str, Any]] = {WeightChange: {"epoch": 2, "ce_weight": 1.0}}


@pytest.mark.parametrize(
    ("section", "field", "wrong"),
    [
        (DataSpec, "val_fraction", (0, 1, -0.1)),
        (DataSpec, "test_fraction", (0, 1)),
        (DataSpec, "limit", (0, -1)),
        (DataSpec, "labels_per_class", (0,)),
        (DataSpec, "num_classes", (1, 0)),
        (DataSpec, "resize", (0, [4], [4, 4, 4], [0, 4])),
        (DataSpec, "crop_padding", (-1,)),
        (DataSpec, "crop_size", (0,)),
        (DataSpec, "imbalance", (1, 0.5, math.inf)),
        (DataSpec, "classes", ([], [0], [0, 1.5], [0, True])),
        (DataSpec, "source", ("digit", "my_module:", ":f", "a b:c", "")),
        (
            DataSpec,
            "normalize",
            ({"mean": [0], "std": [0]}, {"mean": [], "std": []}, {"mean": [0]}),
        ),
        (DataSpec, "seed", (-1, 2**31)),
        (OptimizerSpec, "lr", (0, -1, math.inf, math.nan)),
        (OptimizerSpec, "momentum", (1, -0.1)),
        (OptimizerSpec, "weight_decay", (-1e-9, math.inf)),
        (OptimizerSpec, "max_grad_norm", (0,)),
        (ScheduleSpec, "gamma", (0, 1.1)),
        (ScheduleSpec, "milestones", ([0], [-1])),
        (ScheduleSpec, "warmup_epochs", (-1,)),
        (ObjectiveSpec, "kd_temperature", (0,)),
        (ObjectiveSpec, "min_temperature", (0, -1)),
        (ObjectiveSpec, "init_bias", (math.nan, "zero")),
        (ObjectiveSpec, "projection_dim", (0,)),
        (ObjectiveSpec, "dcd_weight", (-1,)),
        (TeacherSpec, "min_top1", (-1, 101)),
        (TeacherSpec, "source", ("",)),
        (WeightChange, "epoch", (1, 0, -1)),
        (WeightChange, "kd_weight", (-1, math.inf)),
        (WeightChange, "kd_temperature", (0,)),
        (TrainSpec, "epochs", (0,)),
        (TrainSpec, "precision", ("fp64",)),
        (ScalingSpec, "workers", (-1,)),
        (ScalingSpec, "cpus_per_worker", (0,)),
        (ScalingSpec, "gpus_per_worker", (-1,)),
        (ScalingSpec, "wait_s", (-1,)),
    ],
)
def test_values_outside_their_range_are_refused(
    section: Any, field: str, wrong: tuple[Any, ...]
) -> None:
    for value in wrong:
        with pytest.raises(ValidationError) as caught:
            section.model_validate({**NEEDED.get(section, {}), field: value})
        assert {error["loc"][0] for error in caught.value.errors()} == {field}


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (TrainSpec, "epochs", "3"),
        (TrainSpec, "epochs", 3.0),
        (TrainSpec, "epochs", True),
        (OptimizerSpec, "lr", "0.1"),
        (DataSpec, "flip", 1),
        (DataSpec, "flip", "yes"),
        (StudentSpec, "source", 5),
    ],
)
def test_no_type_is_converted_silently(section: Any, field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        section.model_validate({field: value})


def test_a_whole_number_is_fine_where_a_fraction_may_be() -> None:
    assert OptimizerSpec.model_validate({"lr": 1}).lr == 1.0


def test_sections_cannot_be_changed() -> None:
    spec = experiment()
    with pytest.raises(ValidationError, match="frozen"):
        spec.train.epochs = 3  # type: ignore[misc]


def test_only_method_ce_goes_without_a_teacher() -> None:
    assert Experiment.model_validate({"name": "x", "objective": {"method": "ce"}}).teacher is None
    for method in ("kd", "dcd", "dcd+kd"):
        with pytest.raises(ValidationError, match=r"needs a teacher section"):
            Experiment.model_validate({"name": "x", "objective": {"method": method}})


@pytest.mark.parametrize(
    ("workers", "accumulate", "batch_size", "use"),
    [(3, 1, 64, 66), (2, 4, 12, 16), (0, 3, 64, 66), (8, 8, 1, 64), (5, 1, 64, 65)],
)
def test_a_batch_that_cannot_be_shared_out_is_refused_with_one_that_can(
    workers: int, accumulate: int, batch_size: int, use: int
) -> None:
    sections = {"scaling": {"workers": workers}}
    train = {"batch_size": batch_size, "accumulate": accumulate}
    with pytest.raises(ValidationError) as caught:
        experiment(**sections, train=train)
    assert f"train.batch_size {batch_size} is not divisible by" in str(caught.value)
    assert f"use {use}" in str(caught.value)
    experiment(**sections, train={**train, "batch_size": use})


def test_n_is_the_batch_over_the_micro_batches() -> None:
    assert TrainSpec(batch_size=64, accumulate=4).micro_batch_size == 16


def test_an_automatic_sigmoid_bias_needs_two_images() -> None:
    objective = {"contrast": "sigmoid"}
    with pytest.raises(ValidationError, match="needs at least N = 2"):
        experiment(objective=objective, train={"batch_size": 4, "accumulate": 4})
    experiment(objective={**objective, "init_bias": -1.0}, train={"batch_size": 4, "accumulate": 4})
    experiment(objective=objective, train={"batch_size": 4, "accumulate": 2})
    late = {**objective, "dcd_weight": 0, "schedule": [{"epoch": 9, "dcd_weight": 1}]}
    with pytest.raises(ValidationError, match="needs at least N = 2"):
        experiment(objective=late, train={"batch_size": 1})


@pytest.mark.parametrize(
    ("workers", "batch_norm", "synchronised"),
    [
        (0, "sync", False),
        (1, "auto", False),
        (2, "auto", True),
        (2, "sync", True),
        (2, "local", False),
    ],
)
def test_batch_norm_is_synchronised_by_default_with_several_workers(
    workers: int, batch_norm: str, synchronised: bool
) -> None:
    spec = ScalingSpec.model_validate({"workers": workers, "batch_norm": batch_norm})
    assert spec.synchronised is synchronised


@pytest.mark.parametrize("name", ["a", "A-1.b_c", "0", "x" * 100])
def test_names_that_are_fine_as_folders_are_fine(name: str) -> None:
    assert Experiment.model_validate({"name": name, "teacher": TEACHER}).name == name


@pytest.mark.parametrize(
    "name", ["", "a/b", "/a", "..", ".hidden", "-x", "a b", "a\n", "ä", "a\\b", "x" * 300, 7, None]
)
def test_names_that_are_not_are_refused(name: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate({"name": name, "teacher": TEACHER})
    assert [error["loc"] for error in caught.value.errors()] == [("name",)]


def _undocumented(schema: dict[str, Any]) -> Iterator[str]:
    for title, model in [("Experiment", schema), *schema["$defs"].items()]:
        if not model.get("description"):
            yield title
        for name, field in model["properties"].items():
            if not field.get("description"):
                yield f"{title}.{name}"


def test_the_json_schema_documents_every_section_and_field() -> None:
    schema = Experiment.model_json_schema()
    assert set(schema["$defs"]) >= {"DataSpec", "ObjectiveSpec", "FitSpec", "ScalingSpec"}
    assert "register" in schema["$defs"]["TrackingSpec"]["properties"]
    assert list(_undocumented(schema)) == []


def test_the_json_schema_allows_no_unknown_keys() -> None:
    schema = Experiment.model_json_schema()
    assert all(m["additionalProperties"] is False for m in (schema, *schema["$defs"].values()))

"""Each field of an experiment, turned, changes what comes out of it.

A knob that nothing reads is the commonest fault of systems like this one. The table below names two
values for each field; two runs that differ in nothing else must differ in what they record.
"""

from __future__ import annotations

import ast
import io
import itertools
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_networks
import torch
from PIL import Image
from pydantic import BaseModel
from tiny_experiment import recorded, run_quietly, save_teacher, tiny_experiment
from torchvision import models

from orchestrator.checkpoints import Checkpoints
from orchestrator.errors import OrchestratorError, UserError
from orchestrator.places import find_places
from orchestrator.spec import Experiment, ScalingSpec
from orchestrator.storage import Folder

TESTS = Path(__file__).resolve().parents[1]


class Knob(NamedTuple):
    """Two values of a field under which runs must differ. ``{files}`` is the folder of `files`."""

    field: str
    first: Any
    second: Any
    base: Mapping[str, Any] = {}
    """Fields that both runs share."""
    second_too: Mapping[str, Any] = {}
    """Fields that must go along with the second value."""


FIT = {  # a teacher that learns, so that its second epoch is better than the first
    "teacher.checkpoint": None,
    "teacher.args": {"width": 16},
    "teacher.fit": {"epochs": 1, "batch_size": 20, "optimizer": {"lr": 0.3}},
    "teacher.fit.data": {"limit": None},
    "data.augment": "none",
}
FIT_TWICE = {**FIT, "teacher.fit.epochs": 2}
SIGMOID = {"objective.contrast": "sigmoid"}
FOLDER = {
    "data.source": "imagefolder",
    "data.path": "{files}/mixed",
    "data.test_fraction": 0.3,
    "data.limit": None,
    "data.resize": 8,
    "teacher.checkpoint": "{files}/teacher-2-0.pt",
}
TEST_FOLDER = {**FOLDER, "data.test_fraction": None, "data.test_path": "{files}/test"}
PARQUET = {
    "data.source": "parquet",
    "data.path": "{files}/two.parquet",
    "data.limit": None,
    "data.test_fraction": 0.3,
    "teacher.checkpoint": "{files}/teacher-2-0.pt",
}
FAKE_DATA = {"data.source": "torchvision.datasets:FakeData"}
FAKE = {"size": 300, "image_size": [1, 8, 8], "num_classes": 10}
STEP = {"schedule.milestones": [1], "schedule.gamma": 0.1}
SHUFFLENET = {"source": "torchvision:shufflenet_v2_x0_5", "args": {}}
LARGE = {
    "data.grey_to_rgb": True,
    "data.resize": 32,
    "data.limit": 8,
    "data.test_fraction": 0.9,
    "train.batch_size": 4,
}

KNOBS = [
    Knob("seed", 0, 1),
    Knob("data.source", "imagefolder", "parquet", base=FOLDER),
    Knob("data.path", "{files}/mixed", "{files}/other", base=FOLDER),
    Knob("data.test_path", "{files}/test", "{files}/test2", base=TEST_FOLDER),
    Knob("data.image_column", "image", "image2", base=PARQUET),
    Knob("data.label_column", "label", "label2", base=PARQUET),
    Knob("data.args", {**FAKE, "random_offset": 0}, {**FAKE, "random_offset": 1}, base=FAKE_DATA),
    Knob("data.classes", [*range(10)], [1, 0, *range(2, 10)]),
    Knob("data.num_classes", None, 11, base={"objective.method": "dcd", "teacher.num_classes": 10}),
    Knob("data.resize", None, 12),
    Knob("data.resize", [8, 12], [12, 8]),
    Knob("data.resize_by", "stretch", "center_crop", base={"data.resize": [8, 12]}),
    Knob("data.grey_to_rgb", False, True, base=FIT),
    Knob("data.augment", "crop_flip", "none"),
    Knob("data.augment", "crop_flip", "imagenet", base={"data.crop_size": 8}),
    Knob("data.crop_size", 8, 7, base={"data.augment": "imagenet"}),
    Knob("data.crop_padding", 1, 2),
    Knob("data.flip", True, False),
    Knob("data.flip", True, False, base={"data.augment": "imagenet", "data.crop_size": 8}),
    Knob("data.normalize.mean", [0.2], [0.3], base={"data.normalize.std": [0.3]}),
    Knob("data.normalize.std", [0.3], [0.2], base={"data.normalize.mean": [0.2]}),
    Knob("data.test_fraction", 0.8, 0.7),
    Knob("data.val_fraction", 0.2, 0.3),
    Knob("data.limit", 50, 40),
    Knob("data.labels_per_class", 4, 5, base={"data.limit": None}),
    Knob("data.imbalance", None, 4, base={"data.limit": None}),
    Knob("data.split_seed", 0, 1),
    Knob("data.seed", 0, 1),
    Knob("data.seed", 0, 1, base={"data.augment": "none"}),  # decides the order alone, then
    Knob("data.on_error", "fail", "skip", base={**FOLDER, "data.path": "{files}/damaged"}),
    Knob("data.streaming", False, True, base=PARQUET),
    Knob(
        "data.memory_gib",  # a window of 32 images and one of 8
        4e-6,
        1e-6,
        base={**PARQUET, "data.streaming": True, "train.batch_size": 4},
    ),
    Knob("teacher.source", "tiny_networks:network", "tiny_networks:relu_network"),
    Knob("teacher.args", {"width": 15}, {"width": 16}, base=FIT),
    Knob("teacher.checkpoint", "{files}/teacher-10-0.pt", "{files}/teacher-10-1.pt"),
    Knob(
        "teacher.weights",
        None,
        "IMAGENET1K_V1",
        base={
            **LARGE,
            "teacher.source": "torchvision:shufflenet_v2_x0_5",
            "teacher.args": {},
            "teacher.checkpoint": None,
            "objective.method": "dcd",
        },
    ),
    Knob(
        "teacher.num_classes",
        None,
        12,
        base={"teacher.checkpoint": "{files}/teacher-12-0.pt", "objective.method": "dcd"},
    ),
    Knob("teacher.normalize.mean", [0.2], [0.3], base={"teacher.normalize.std": [0.3]}),
    Knob("teacher.normalize.std", [0.3], [0.2], base={"teacher.normalize.mean": [0.2]}),
    Knob("teacher.min_top1", 0, 90),
    Knob("teacher.min_top1", 0, None),  # by default, chance level is the least
    Knob("teacher.precision", "auto", "bf16"),
    Knob("teacher.precision", "fp32", "fp16"),
    Knob("teacher.precision", "auto", "fp32", base={"train.precision": "bf16"}),
    Knob("teacher.fit.epochs", 1, 2, base=FIT),
    Knob("teacher.fit.batch_size", 20, 10, base=FIT),
    Knob("teacher.fit.seed", 0, 1, base=FIT),
    Knob("teacher.fit.data", {"limit": 100}, {"limit": None}, base=FIT),
    Knob("teacher.fit.optimizer.name", "sgd", "adamw", base=FIT),
    Knob("teacher.fit.optimizer.lr", 0.3, 0.2, base=FIT),
    Knob("teacher.fit.optimizer.momentum", 0.9, 0.5, base=FIT),
    Knob("teacher.fit.optimizer.nesterov", False, True, base=FIT),
    Knob("teacher.fit.optimizer.weight_decay", 0.0005, 0.1, base=FIT),
    Knob("teacher.fit.optimizer.max_grad_norm", None, 0.01, base=FIT),
    Knob("teacher.fit.schedule.kind", "step", "cosine", base=FIT),
    Knob("teacher.fit.schedule.milestones", [5], [1], base=FIT_TWICE),
    Knob(
        "teacher.fit.schedule.gamma",
        0.1,
        0.5,
        base={**FIT_TWICE, "teacher.fit.schedule.milestones": [1]},
    ),
    Knob("teacher.fit.schedule.warmup_epochs", 0, 1, base=FIT),
    Knob("student.source", "tiny_networks:network", "tiny_networks:relu_network"),
    Knob("student.args", {}, {"width": 6}),
    Knob("student.checkpoint", None, "{files}/student.pt"),
    Knob(
        "student.weights",
        None,
        "IMAGENET1K_V1",
        base={**LARGE, "student": SHUFFLENET, "objective.method": "ce", "teacher": None},
    ),
    Knob("objective.method", "dcd+kd", "dcd"),
    Knob("objective.contrast", "softmax", "sigmoid"),
    Knob("objective.negatives", "all", "other_class"),
    Knob("objective.ce_weight", 1.0, 0.5),
    Knob("objective.kd_weight", 1.0, 0.5),
    Knob("objective.dcd_weight", 1.0, 0.5),
    Knob("objective.consistency_weight", 0.5, 0.25),
    Knob("objective.kd_temperature", 4.0, 2.0),
    Knob("objective.init_temperature", 0.4, 0.5),
    Knob(
        "objective.min_temperature",
        0.1,
        0.36,
        base={
            "objective.init_temperature": 0.36,
            "optimizer.name": "adamw",
            "optimizer.scalar_lr_ratio": 2,
            "train.epochs": 4,
        },
    ),
    Knob("objective.init_bias", "auto", -1.0, base=SIGMOID),
    Knob("objective.projection_dim", 128, 64),
    Knob("objective.method", "rkd", "rkd+kd"),
    Knob("objective.method", "dkd", "vid", second_too={"objective.hint_layers": "conv"}),
    Knob("objective.method_weight", 1.0, 2.0, base={"objective.method": "rkd"}),
    Knob("objective.method_args", {}, {"angle_weight": 1}, base={"objective.method": "rkd"}),
    Knob("objective.hint_layers", "conv", "hidden", base={"objective.method": "vid"}),
    Knob("objective.hint_layers", "conv", ["conv", "norm"], base={"objective.method": "at"}),
    Knob(
        "objective.hint_layers.student",
        "conv",
        "norm",
        base={"objective.method": "at", "objective.hint_layers.teacher": "conv"},
    ),
    Knob(
        "objective.hint_layers.teacher",
        "conv",
        "norm",
        base={"objective.method": "at", "objective.hint_layers.student": "conv"},
    ),
    Knob("objective.schedule", [], [{"epoch": 2, "kd_weight": 0.5}], base={"train.epochs": 2}),
    Knob("objective.feature_layer", None, "conv"),
    Knob("objective.feature_layer.student", None, "conv"),
    Knob("objective.feature_layer.teacher", None, "conv"),
    Knob("optimizer.name", "sgd", "adamw"),
    Knob("optimizer.lr", 0.05, 0.1),
    Knob("optimizer.momentum", 0.9, 0.5),
    Knob("optimizer.momentum", 0.9, 0.5, base={"optimizer.name": "adamw"}),
    Knob("optimizer.nesterov", False, True),
    Knob("optimizer.weight_decay", 0.0005, 0.1),
    Knob("optimizer.scalar_lr_ratio", 0.1, 1.0),
    Knob("optimizer.max_grad_norm", None, 0.01),
    Knob("schedule.kind", "step", "cosine"),
    Knob("schedule.kind", "step", "constant", base={**STEP, "train.epochs": 2}),
    Knob("schedule.milestones", [5], [1], base={"train.epochs": 2}),
    Knob("schedule.milestones", [0.9], [0.5], base={"train.epochs": 2}),
    Knob("schedule.gamma", 0.1, 0.5, base={**STEP, "train.epochs": 2}),
    Knob("schedule.warmup_epochs", 0, 1),
    Knob("teacher_cache.dtype", "auto", "bf16", base={"teacher_cache.mode": "on"}),
    Knob("teacher_cache.dtype", "bf16", "fp16", base={"teacher_cache.mode": "on"}),
    Knob("teacher_cache.views", None, 1, base={"train.epochs": 2}),
    Knob("train.epochs", 1, 2),
    Knob("train.batch_size", 20, 10),
    Knob("train.accumulate", 1, 2),
    Knob("train.precision", "fp32", "bf16"),
    Knob("train.precision", "bf16", "fp16"),
]

# Fields that no number of an in-process run depends on, each with the test that turns it.
ELSEWHERE = {
    "name": "test_another_spec_under_the_same_name_is_refused_with_what_changed",
    "data.download": "test_a_download_that_fails_says_where_to_put_the_files",
    "teacher.fit.optimizer.scalar_lr_ratio": "test_a_fit_has_no_use_for_the_scalars_rate",
    **dict.fromkeys(
        (
            "objective.schedule.epoch",
            "objective.schedule.ce_weight",
            "objective.schedule.kd_weight",
            "objective.schedule.dcd_weight",
            "objective.schedule.consistency_weight",
            "objective.schedule.kd_temperature",
        ),
        "test_a_change_of_weights_acts_from_its_epoch_on_and_not_before",
    ),
    "objective.schedule.method_weight": "test_a_change_of_a_method_s_weight_acts_from_its_epoch_on",
    "teacher_cache.mode": "test_the_mode_decides_which_runs_use_it",
    "teacher_cache.path": "test_the_place_is_beside_the_runs_unless_it_is_given",
    "teacher_cache.max_gib": "test_a_cache_that_is_full_stays_within_its_budget",
    "train.compile": "test_compile_reaches_both_networks",
    "train.cuda_graphs": "test_cuda_graphs_need_a_gpu",
    "scaling.workers": "test_workers_and_their_resources_are_what_the_machine_is_asked_for",
    "scaling.cpus_per_worker": "test_workers_and_their_resources_are_what_the_machine_is_asked_for",
    "scaling.gpus_per_worker": "test_workers_and_their_resources_are_what_the_machine_is_asked_for",
    "scaling.wait_s": "test_a_cluster_that_stays_too_small_is_given_up_after_the_wait",
    "scaling.max_failures": "test_a_killed_worker_is_replaced_and_no_number_changes",
    "scaling.batch_norm": "test_batch_norm_is_synchronised_by_default_with_several_workers",
    "tracking.enabled": "test_places_follow_the_settings_of_tracking_and_storage",
    "tracking.uri": "test_places_follow_the_settings_of_tracking_and_storage",
    "tracking.experiment": "test_a_run_asks_for_its_mlflow_experiment_and_its_registration",
    "tracking.register": "test_a_run_asks_for_its_mlflow_experiment_and_its_registration",
    "storage.path": "test_places_follow_the_settings_of_tracking_and_storage",
    "storage.keep": "test_as_many_checkpoints_are_kept_as_asked_for",
}


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields that are not sections themselves."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        options = (field.annotation, *get_args(field.annotation))
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        values = [o for o in get_args(field.annotation) if o not in (*sections, type(None))]
        # A tuple of sections, (section, ...), has fields of its own and is one itself.
        if sections:
            yield from _leaves(sections[0], f"{path}.")
        if values or not sections:
            yield path


def test_every_field_is_turned_here_or_by_a_test_that_exists() -> None:
    leaves = set(_leaves(Experiment))
    assert len(leaves) > 80
    turned = {knob.field for knob in KNOBS}
    assert leaves - turned - set(ELSEWHERE) == set()
    assert (turned | set(ELSEWHERE)) - leaves == set()
    assert turned & set(ELSEWHERE) == set()
    tests = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert set(ELSEWHERE.values()) - tests == set()


def _picture(value: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the table's paths name."""
    folder = tmp_path_factory.mktemp("files")
    for num_classes, seed in ((10, 0), (10, 1), (12, 0), (2, 0)):
        save_teacher(folder, num_classes=num_classes, seed=seed)
    torch.manual_seed(5)
    torch.save(tiny_networks.network(10).state_dict(), folder / "student.pt")
    numbers = itertools.count()
    for name in ("mixed", "other", "test", "test2", "damaged"):
        for label in "01":
            (folder / name / label).mkdir(parents=True)
            for image in range(20):
                (folder / name / label / f"{image}.png").write_bytes(_picture(next(numbers)))
    for image in range(20):  # all of a class, so that training is sure to meet one
        if image % 2:
            (folder / "damaged" / "1" / f"{image}.png").write_bytes(b"no picture")
    labels = [n % 2 for n in range(40)]
    table = pa.table(
        {
            "image": [_picture(next(numbers)) for _ in labels],
            "image2": [_picture(next(numbers)) for _ in labels],
            "label": labels,
            "label2": [(n // 2) % 2 for n in range(40)],
        }
    )
    for path in ("two.parquet", "mixed/two.parquet"):
        pq.write_table(table, folder / path)
    # What torchvision would have downloaded before.
    cache_folder = folder / "hub" / "checkpoints"
    cache_folder.mkdir(parents=True)
    url = models.get_model_weights("shufflenet_v2_x0_5")["IMAGENET1K_V1"].url
    torch.manual_seed(0)
    state = models.shufflenet_v2_x0_5().state_dict()
    torch.save(state, cache_folder / url.rpartition("/")[2])
    return folder


def _filled(value: Any, files: Path) -> Any:
    if isinstance(value, str):
        return value.replace("{files}", str(files))
    return value


class _Runner:
    """Runs each setting once; fitted teachers are shared, since all runs lie in one storage."""

    def __init__(self, files: Path) -> None:
        self._files = files
        self._number = itertools.count()
        self.observe = cache(self._observe)

    def _observe(self, settings: str) -> Any:
        """All that a run records but wall times, or what stopped it."""
        updates = {
            "train.epochs": 1,
            "teacher.checkpoint": "{files}/teacher-10-0.pt",
            "storage.path": "{files}/runs",
            **ast.literal_eval(settings),
        }
        filled = {path: _filled(value, self._files) for path, value in updates.items()}
        filled["name"] = f"knob-{next(self._number)}"
        try:
            outcome = run_quietly(tiny_experiment("", filled))
        except OrchestratorError as error:
            print(error)  # seen when the test fails
            return type(error).__name__
        return recorded(outcome.folder), outcome.metrics


@pytest.fixture(scope="module")
def runner(files: Path) -> _Runner:
    return _Runner(files)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda k: f"{k.field}: {k.first} or {k.second}")
def test_turning_a_knob_changes_the_outcome(
    knob: Knob, runner: _Runner, files: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(files))
    first = runner.observe(repr({**knob.base, knob.field: knob.first}))
    second = runner.observe(repr({**knob.base, knob.field: knob.second, **knob.second_too}))
    assert first != second
    # At least one of the two must be a run: two different refusals would prove nothing.
    assert not (isinstance(first, str) and isinstance(second, str))


def test_the_same_setting_twice_records_the_same(
    runner: _Runner, files: Path, workplace: Path
) -> None:
    """Without which the test above could not fail."""
    first = runner.observe(repr({"seed": 3}))
    assert first == runner.observe(repr({"seed": 3, "data.seed": 0}))
    assert not isinstance(first, str)


def test_the_seed_of_the_data_decides_augmentation_too(
    runner: _Runner, files: Path, workplace: Path
) -> None:
    """With all images in one batch, their order moves the loss by no more than rounding."""
    whole = {"train.batch_size": 50, "objective.method": "ce"}

    def loss(seed: int, augment: str) -> float:
        points, _ = runner.observe(repr({**whole, "data.seed": seed, "data.augment": augment}))
        return float(points["train/loss", 1])

    assert loss(0, "none") == pytest.approx(loss(1, "none"), rel=1e-6)
    assert loss(0, "crop_flip") != pytest.approx(loss(1, "crop_flip"), rel=1e-4)


def test_a_fit_has_no_use_for_the_scalars_rate(
    runner: _Runner, files: Path, workplace: Path
) -> None:
    """It is cross entropy, which has neither temperature nor bias."""
    first = runner.observe(repr({**FIT, "teacher.fit.optimizer.scalar_lr_ratio": 0.1}))
    second = runner.observe(repr({**FIT, "teacher.fit.optimizer.scalar_lr_ratio": 1.0}))
    assert first == second
    assert not isinstance(first, str)


def test_workers_and_their_resources_are_what_the_machine_is_asked_for() -> None:
    from orchestrator.resources import local_resources

    cores = len(os.sched_getaffinity(0))

    def resources(**fields: Any) -> Any:
        return local_resources(ScalingSpec.model_validate({"gpus_per_worker": 0, **fields}))

    assert resources(workers=1) == (cores, 0.0)
    assert resources(workers=cores) == (1, 0.0)
    assert resources(workers=1, cpus_per_worker=1) == (1, 0.0)
    with pytest.raises(UserError, match=rf"{cores + 1} workers of 1 CPU are needed"):
        resources(workers=cores + 1)
    with pytest.raises(UserError, match=rf"1 workers of {cores + 1} CPU are needed"):
        resources(workers=1, cpus_per_worker=cores + 1)
    too_many = torch.cuda.device_count() + 1
    with pytest.raises(UserError, match=rf"and {too_many} GPU are needed, but this machine has"):
        resources(workers=1, gpus_per_worker=too_many)


def test_places_follow_the_settings_of_tracking_and_storage(
    teacher_file: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places(**updates: Any) -> Any:
        dotted = {key.replace("__", "."): value for key, value in updates.items()}
        return find_places(tiny_experiment(teacher_file, dotted))

    off = places()
    assert (off.tracking_uri, off.artifact_root) == (None, None)
    assert (off.storage.location, off.storage_is_default) == (f"{workplace}/dcd_runs", True)
    on = places(tracking__enabled=True)
    assert on.tracking_uri == f"sqlite:///{workplace}/mlflow.db"
    assert on.artifact_root == f"{workplace}/mlartifacts"
    elsewhere = places(tracking__enabled=True, tracking__uri="http://h", storage__path="runs")
    assert (elsewhere.tracking_uri, elsewhere.artifact_root) == ("http://h", None)
    assert elsewhere.storage.location == f"{workplace}/runs"
    assert not elsewhere.storage_is_default
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert places(tracking__enabled=True).tracking_uri == "http://environment"
    assert places(tracking__enabled=True, tracking__uri="http://h").tracking_uri == "http://h"
    monkeypatch.setenv("DCD_HOME", str(workplace / "home"))
    assert places().storage.location == f"{workplace}/home/dcd_runs"


def test_inside_a_ray_job_nothing_is_left_in_its_working_directory(
    teacher_file: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = '{"metadata": {"job_submission_id": "raysubmit_1"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
    monkeypatch.setenv("HOME", str(workplace / "me"))
    found = find_places(tiny_experiment(teacher_file, {"tracking.enabled": True}))
    assert found.storage.location == f"{workplace}/me/dcd/dcd_runs"
    assert found.tracking_uri == f"sqlite:///{workplace}/me/dcd/mlflow.db"


@pytest.mark.slow
def test_a_run_asks_for_its_mlflow_experiment_and_its_registration(
    teacher_file: Path, workplace: Path
) -> None:
    """Written beside the run, whether or not a server answers: here none does."""
    updates = {
        "tracking.enabled": True,
        "tracking.uri": "http://127.0.0.1:9",
        "tracking.experiment": "mine",
        "tracking.register": "best-of-mine",
        "train.epochs": 1,
    }
    outcome = run_quietly(tiny_experiment(teacher_file, updates))
    assert outcome.tracking is not None
    assert outcome.tracking.pending is not None
    request = outcome.folder.read_json("tracking/request.json")
    assert (request["experiment"], request["register"]) == ("mine", "best-of-mine")
    assert request["params"]["tracking.experiment"] == "mine"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_checkpoints_are_kept_as_asked_for(
    teacher_file: Path, workplace: Path, keep: int
) -> None:
    updates = {"storage.keep": keep, "train.epochs": 4, "storage.path": "runs"}
    outcome = run_quietly(tiny_experiment(teacher_file, updates))
    kept = Checkpoints(Folder("runs/tiny/checkpoints"), keep=1).epochs()
    best = int(outcome.metrics["best_epoch"])
    assert set(kept) == {best, *range(5 - keep, 5)}

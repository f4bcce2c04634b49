"""Sets that are streamed through Ray Data: the images of one process, on any number of workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import digits
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.train
from ray.train.torch import TorchTrainer
from sklearn.datasets import load_digits

from benchmarks.streaming import stream_epoch
from orchestrator.data import StreamedSet, load_dataset
from orchestrator.data.reading import Failure, Rows, read_tasks
from orchestrator.distillation import distill
from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment
from orchestrator.spec import DataSpec

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    *digits.RAY_WARNINGS,
    # pandas and pyarrow inside Ray Data.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ROW_GROUPS = ((700, 90), (500, 400), (597, 37))
"""Images of each shard, and of its row groups."""


@pytest.fixture(scope="module")
def digits_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as PNG in uneven row groups."""
    source, start = load_digits(), 0
    folder = tmp_path_factory.mktemp("digits")
    for number, (num_images, group) in enumerate(ROW_GROUPS):
        rows = range(start, start + num_images)
        images = [digits.png(source.images[row]) for row in rows]
        labels = [int(source.target[row]) for row in rows]
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=group)
        start += num_images
    return folder


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 600 digits as files, two of which are broken."""
    source = load_digits()
    folder = tmp_path_factory.mktemp("folder")
    for row in range(600):
        class_folder = folder / str(source.target[row])
        class_folder.mkdir(exist_ok=True)
        content = b"no picture" if row in (55, 444) else digits.png(source.images[row])
        (class_folder / f"{row:04}.png").write_bytes(content)
    return folder


def data(path: Path, **options: Any) -> dict[str, Any]:
    return {
        "source": "parquet" if list(path.glob("*.parquet")) else "imagefolder",
        "path": str(path),
        "resize": 16,
        "grey_to_rgb": True,
        "crop_padding": 1,
        "flip": False,
        "test_fraction": 0.2,
        "streaming": True,
        "memory_gib": 0.0005,  # a window of 349 images
        **options,
    }


def run(path: Path, name: str, updates: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Train a student on cross entropy; its metrics by epoch."""
    values = {
        "name": name,
        "data": data(path),
        "student": {"source": "resnet8"},
        "objective": {"method": "ce"},
        "optimizer": {"lr": 0.1},
        "schedule": {"kind": "cosine"},
        "train": {"epochs": 3, "batch_size": 64, "precision": "fp32"},
        "scaling": {"cpus_per_worker": 1},
        "tracking": {"enabled": False},
    }
    for key, value in updates.items():
        section, field = key.split(".")
        values[section] = values[section] | {field: value}  # type: ignore[operator]
    outcome = distill(build_experiment(values, where="test"))
    folder = outcome.folder.local_path
    assert folder is not None
    return digits.epochs(folder)


def training_set(path: Path, **options: Any) -> StreamedSet:
    split = load_dataset(DataSpec(**data(path, **options))).train
    assert isinstance(split, StreamedSet)
    return split


def joined(parts: Iterator[Rows]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Failure]]:
    found = list(parts)
    images, labels, indices = (np.concatenate([part[i] for part in found]) for i in range(3))
    return images, labels, indices, [failure for part in found for failure in part.failures]


@pytest.mark.usefixtures("cluster")
def test_ray_data_brings_what_this_process_reads_in_the_same_order(
    digits_set: Path, digits_folder: Path
) -> None:
    from orchestrator.streaming.ray_reading import read_on_ray

    for path, broken in ((digits_set, 0), (digits_folder, 2)):
        # 189 bytes an image: no multiple of anything that memory is aligned to.
        options = {"test_fraction": 0.01, "val_fraction": 0.01, "resize": [9, 7]}
        split = training_set(path, on_error="skip", **options)
        tasks = split.tasks(order=(0, 3))
        assert len(tasks) > 1
        here = joined(read_tasks(tasks, split.form, threads=1, memory=split.memory))
        there = joined(read_on_ray(tasks, split, decoders=2))
        assert len(here[3]) == broken
        assert here[3] == there[3]
        for one, other in zip(here[:3], there[:3], strict=True):
            assert np.array_equal(one, other)


@pytest.mark.usefixtures("cluster")
def test_two_workers_see_each_image_once(tmp_path: Path, digits_set: Path) -> None:
    split = training_set(digits_set)
    TorchTrainer(
        stream_epoch,
        train_loop_config={"split": split, "to": str(tmp_path), "cores": 1},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="epoch", storage_path=str(tmp_path / "ray")),
    ).fit()
    seen = [np.load(tmp_path / f"{rank}.npz")["indices"] for rank in range(2)]
    assert abs(len(seen[0]) - len(seen[1])) <= 1
    assert sorted(np.concatenate(seen).tolist()) == split.indices.tolist()


@pytest.mark.usefixtures("cluster")
def test_a_worker_has_the_numbers_of_one_process(workplace: Path, digits_set: Path) -> None:
    alone = run(digits_set, "alone", {"scaling.workers": 0})
    assert alone[3]["val/top1"] > 85
    assert run(digits_set, "one", {"scaling.workers": 1}) == alone


@pytest.mark.usefixtures("cluster")
def test_one_step_over_all_images_has_the_loss_of_one_process(
    workplace: Path, digits_set: Path
) -> None:
    whole = {"train.epochs": 1, "train.batch_size": 1400, "data.memory_gib": 0.01}
    alone = run(digits_set, "whole", {"scaling.workers": 0, **whole})
    held = run(digits_set, "held", {"scaling.workers": 0, **whole, "data.streaming": False})
    two = run(digits_set, "whole-two", {"scaling.workers": 2, **whole})
    # One image more or less of 1,295 would change the fourth digit.
    for other in (held, two):
        assert other[1]["train/loss"] == pytest.approx(alone[1]["train/loss"], rel=2e-6)


@pytest.mark.usefixtures("cluster")
def test_broken_images_are_skipped_and_counted_or_end_all_workers(
    workplace: Path, digits_folder: Path
) -> None:
    two = {"scaling.workers": 2, "train.epochs": 1, "data.val_fraction": 0.01}
    options = {**two, "data.test_fraction": 0.01}
    epochs = run(digits_folder, "skipping", {**options, "data.on_error": "skip"})
    assert epochs[1]["data/skipped"] == 2
    with pytest.raises(UserError, match=r"0(055|444)\.png: cannot be decoded"):
        run(digits_folder, "failing", options)


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_starts_its_epoch_anew_and_no_number_changes(
    workplace: Path, digits_set: Path
) -> None:
    two = {"scaling.workers": 2, "train.epochs": 4}
    undisturbed = run(digits_set, "undisturbed", two)

    def kill_one() -> None:
        folder = workplace / "dcd_runs" / "disturbed"
        digits.wait_until(lambda: 2 in digits.epochs(folder), what="second epoch")
        os.kill(digits.train_workers()[-1].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    disturbed = run(digits_set, "disturbed", two)
    thread.join()
    assert disturbed == undisturbed
    names = {p.name for p in digits.points(workplace / "dcd_runs" / "disturbed")}
    assert "faults/restarts" in names

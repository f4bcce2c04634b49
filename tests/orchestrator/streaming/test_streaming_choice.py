"""What is streamed and what is held, and what cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_experiment import run_quietly, tiny_experiment

from orchestrator.data import load_dataset, streamed
from orchestrator.distillation import build_work
from orchestrator.errors import UserError
from orchestrator.inputs import read_inputs
from orchestrator.plan import describe_plan
from orchestrator.spec import DataSpec, Experiment
from orchestrator.storage import Folder

BYTES = 300 * 8  # of 300 images of 1x2x4


@pytest.fixture
def path(numbered_parquet: Callable[..., Path]) -> Path:
    return numbered_parquet((100, 100), (100,))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this machine one with so many bytes of memory."""
    return lambda size: monkeypatch.setattr(streamed, "node_memory", lambda: size)


def experiment(path: Path, teacher_file: Path, updates: dict[str, Any]) -> Experiment:
    values: dict[str, Any] = {
        "data.source": "parquet",
        "data.path": str(path),
        "data.limit": None,
        "data.test_fraction": 0.2,
        "objective.method": "dcd",
        "teacher.num_classes": 10,
    }
    return tiny_experiment(teacher_file, values | updates)


def test_auto_streams_what_takes_more_than_a_quarter_of_the_memory(
    path: Path, machine: Callable[[int], None]
) -> None:
    def is_streamed(choice: bool | str) -> bool:
        spec = DataSpec(source="parquet", path=str(path), test_fraction=0.2, streaming=choice)
        return load_dataset(spec).is_streamed

    machine(4 * BYTES)
    assert not is_streamed("auto")
    assert is_streamed(True)
    machine(4 * BYTES - 1)
    assert is_streamed("auto")
    assert not is_streamed(False)


def test_the_memory_of_this_machine_is_what_the_system_says() -> None:
    kib = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    assert 0 < streamed.node_memory() <= kib * 1024


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        (
            {"data.source": "digits", "data.path": None},
            r"streaming reads imagefolder and parquet; source 'digits' is small and held in memory",
        ),
        ({"teacher_cache.mode": "on"}, r"teacher_cache keeps the answers .* drop data\.streaming"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    path: Path, teacher_file: Path, updates: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        experiment(path, teacher_file, {"data.streaming": True, **updates})


def test_a_cache_is_refused_when_auto_comes_out_as_streaming(
    path: Path, teacher_file: Path, machine: Callable[[int], None]
) -> None:
    machine(BYTES)
    with pytest.raises(UserError, match=r"teacher_cache is on, and the images are streamed"):
        read_inputs(experiment(path, teacher_file, {"teacher_cache.mode": "on"}))


def test_a_search_over_streamed_images_goes_without_the_cache(
    path: Path, teacher_file: Path, tmp_path: Path
) -> None:
    for streaming in (True, False):
        inputs = read_inputs(experiment(path, teacher_file, {"data.streaming": streaming}))
        folder = Folder(str(tmp_path / "run"))
        work, _ = build_work(inputs, inputs.teacher, folder, one_of_many=True)
        assert (work.cache is None) == streaming


def test_a_window_smaller_than_a_batch_is_refused_with_what_would_do(
    path: Path, teacher_file: Path
) -> None:
    # Batches of 20 images of 8 bytes need 2 x 160 bytes; what would do is given to 0.001.
    updates = {"data.streaming": True, "data.memory_gib": 319 / 2**30}
    with pytest.raises(
        UserError,
        match=r"data\.memory_gib: .* holds 19 images, and a batch has 20: give at least 0\.001",
    ):
        read_inputs(experiment(path, teacher_file, updates))
    read_inputs(experiment(path, teacher_file, {**updates, "data.memory_gib": 0.001}))


@pytest.mark.usefixtures("workplace")
def test_plan_tells_what_is_streamed_and_from_when_on(
    path: Path, teacher_file: Path, machine: Callable[[int], None]
) -> None:
    machine(BYTES)
    plan = describe_plan(experiment(path, teacher_file, {"data.memory_gib": 0.5}))
    assert "images are streamed in at most 512 MiB per worker, 33,554,432 of them" in plan
    assert "cache      off: the images are streamed" in plan
    assert "note       the images are streamed: decoded they would take" in plan
    held = describe_plan(experiment(path, teacher_file, {"data.streaming": False}))
    assert "streamed" not in held.split("# plan")[1]


def test_mean_and_deviation_of_a_large_set_are_measured_on_a_sample(
    numbered_parquet: Callable[..., Path], teacher_file: Path
) -> None:
    path = numbered_parquet((500,) * 20)
    inputs = read_inputs(experiment(path, teacher_file, {"data.streaming": True}))
    num_images = len(inputs.dataset.train)
    assert inputs.dataset.num_measured == 4096 < num_images
    assert f"of 4,096 of the {num_images:,} training images" in "\n".join(inputs.notes)
    held = load_dataset(inputs.experiment.data.model_copy(update={"streaming": False}))
    assert inputs.dataset.mean == pytest.approx(held.mean, rel=0.05)


@pytest.mark.usefixtures("workplace")
def test_a_run_is_the_same_again_and_another_with_another_window(
    path: Path, teacher_file: Path
) -> None:
    def result(name: str, memory_gib: float) -> dict[str, float]:
        updates = {"name": name, "data.streaming": True, "data.memory_gib": memory_gib}
        return run_quietly(experiment(path, teacher_file, updates)).metrics

    assert result("a", 1.0) == result("b", 1.0)
    assert result("a", 1.0) != result("c", 1e-6)


def test_processes_that_decode_load_neither_torch_nor_the_spec() -> None:
    code = (
        "import sys, orchestrator.data.blocks, orchestrator.data.row_groups, "
        "orchestrator.data.folder_files; print({'torch', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

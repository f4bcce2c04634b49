"""How a run computes: precisions, and whether it compiles."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_experiment
import torch
from torch import nn

from orchestrator import computation
from orchestrator.computation import (
    COMPUTATION,
    Computation,
    choose_computation,
    computation_tags,
    describe_computation,
    uses_graphs,
    write_computation,
)
from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment
from orchestrator.storage import Folder

CPU = torch.device("cpu")


def choose(updates: dict[str, Any] | None = None, *, num_images: int = 50) -> Computation:
    experiment = build_experiment(
        tiny_experiment.tiny_values("teacher.pt", updates or {}), where="test"
    )
    # 3 x 4 weights at each of 8 x 8 places: 1,536 operations forward, three times that to learn.
    network = nn.Conv2d(3, 4, 1)
    return choose_computation(
        experiment,
        CPU,
        student=network,
        teacher=network,
        example=torch.zeros(2, 3, 8, 8),
        num_images=num_images,
    )


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "expected"),
    [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")],
)
def test_auto_is_bf16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[expected]
    assert choose({"train.precision": "auto"})[1:3] == (dtype, dtype)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ("fp32", "auto", (torch.float32, torch.float32)),
        ("bf16", "auto", (torch.bfloat16, torch.bfloat16)),
        ("bf16", "fp32", (torch.bfloat16, torch.float32)),
        ("fp32", "fp16", (torch.float32, torch.float16)),
    ],
)
def test_the_teacher_follows_the_student_unless_it_has_a_precision_of_its_own(
    student: str, teacher: str, expected: tuple[torch.dtype, torch.dtype]
) -> None:
    found = choose({"train.precision": student, "teacher.precision": teacher})
    assert (found.student, found.teacher) == expected


def test_auto_compiles_where_there_is_enough_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    # 4 x 1,536 operations an image and two epochs; 900 s of two cores are 3.6e14 operations.
    enough = 3.6e14 / (4 * 1536 * 2)
    assert choose(num_images=int(1.001 * enough)).compiled
    assert not choose(num_images=int(0.999 * enough)).compiled
    assert choose({"train.epochs": 4}, num_images=int(0.501 * enough)).compiled
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert not choose(num_images=int(1.001 * enough)).compiled


def test_auto_does_not_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "my-compiler")
    asked = []
    monkeypatch.setattr(shutil, "which", lambda name: asked.append(name))
    assert not choose(num_images=10**14).compiled
    assert asked == ["my-compiler"]


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_asked_for_is_done(wanted: bool) -> None:
    assert choose({"train.compile": wanted}).compiled is wanted


def test_cuda_graphs_need_a_gpu() -> None:
    assert not choose({"train.cuda_graphs": "auto"}).cuda_graphs
    assert not choose({"train.cuda_graphs": False}).cuda_graphs
    with pytest.raises(UserError, match="true, but this run computes on cpu"):
        choose({"train.cuda_graphs": True})


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ({"student.source": "resnet8"}, True),
        ({"student.source": "torchvision:resnet18"}, True),
        ({}, False),  # a network of the user's own
        ({"train.cuda_graphs": True}, True),
        ({"student.source": "resnet8", "train.cuda_graphs": False}, False),
        ({"student.source": "resnet8", "train.precision": "fp16"}, False),
    ],
)
def test_auto_takes_cuda_graphs_for_networks_that_are_known(
    updates: dict[str, Any], expected: bool
) -> None:
    experiment = build_experiment(tiny_experiment.tiny_values("teacher.pt", updates), where="test")
    precision = experiment.train.precision
    for ranks in (1, 2):
        if ranks == 2 and updates.get("train.cuda_graphs"):
            with pytest.raises(UserError, match="has 2 workers"):
                uses_graphs(experiment, precision, torch.device("cuda"), num_ranks=ranks)
        else:
            found = uses_graphs(experiment, precision, torch.device("cuda"), num_ranks=ranks)
            assert found is (expected and ranks == 1)


def test_the_run_tells_how_it_was_computed(tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    assert describe_computation(run) is None and computation_tags(run) == {}
    chosen = Computation("cpu", torch.bfloat16, torch.float16, compiled=True)
    write_computation(run, chosen, agreement=99.756)
    assert describe_computation(run) == (
        "bf16 on cpu, compiled; the teacher in fp16 answers as in fp32 for 99.76 % of the "
        "validation images"
    )
    assert computation_tags(run)["dcd.computation.teacher"] == "fp16"
    write_computation(run, chosen._replace(student=torch.float32, compiled=False), agreement=None)
    assert describe_computation(run) == "fp32 on cpu, not compiled"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_run_with_enough_work_is_compiled_and_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher, losses = tiny_experiment.save_teacher(tmp_path), []
    for limit in (900.0, 0.0):
        monkeypatch.setitem(computation._PAYS_AFTER_S, "cpu", limit)
        name = f"limit-{limit:g}"
        outcome = tiny_experiment.run_quietly(
            tiny_experiment.tiny_experiment(teacher, {"name": name, "train.epochs": 1})
        )
        assert outcome.folder.read_json(COMPUTATION)["compiled"] == (limit == 0)
        losses.append(tiny_experiment.recorded(outcome.folder)["train/loss", 1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_agreement_of_a_teacher_in_half_precision_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = tiny_experiment.save_teacher(tmp_path)
    for precision in ("fp32", "bf16"):
        updates = {"name": precision, "teacher.precision": precision, "train.epochs": 1}
        outcome = tiny_experiment.run_quietly(tiny_experiment.tiny_experiment(teacher, updates))
        found = outcome.folder.read_json(COMPUTATION)["teacher_agreement"]
        points = tiny_experiment.recorded(outcome.folder)
        if precision == "fp32":
            assert found is None and ("teacher/val_agreement", 0) not in points
        else:
            assert 50 < found <= 100 and points["teacher/val_agreement", 0] == found

"""Steps as CUDA graphs learn what steps one by one learn. On a machine with a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_networks
import torch
from tiny_experiment import recorded, run_quietly, save_teacher, tiny_experiment
from torch import Tensor, nn

from orchestrator.computation import COMPUTATION, describe_computation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


@pytest.fixture
def teacher_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_teacher(tmp_path)


def run(teacher: Path, name: str, updates: dict[str, Any]) -> dict[tuple[str, int], float]:
    values = {"name": name, "train.epochs": 4, "data.limit": 90, "train.batch_size": 8} | updates
    outcome = run_quietly(tiny_experiment(teacher, values))
    assert outcome.folder.read_json(COMPUTATION)["cuda_graphs"] == updates["train.cuda_graphs"]
    points = recorded(outcome.folder)
    return {key: value for key, value in points.items() if not key[0].startswith("time/")}


@pytest.mark.parametrize(
    "updates",
    [
        {},
        {"train.precision": "bf16"},
        {"train.accumulate": 2},
        {"optimizer.max_grad_norm": 0.5},
        {"optimizer.name": "adamw", "optimizer.lr": 1e-3},
        {"schedule.kind": "cosine", "schedule.warmup_epochs": 1.5},
        {"objective.schedule": [{"epoch": 3, "dcd_weight": 0.0, "kd_weight": 2.0}]},
        {"objective.contrast": "sigmoid", "objective.negatives": "other_class"},
        {"objective.method": "ce"},
        {"teacher_cache.mode": "on", "teacher_cache.views": 2},
        {"objective.method": "dkd"},
        {"objective.method": "crd+kd", "objective.method_args": {"num_negatives": 16}},
        {"objective.method": "crd", "train.accumulate": 2},
        {"objective.method": "rrd", "objective.method_args": {"queue_size": 24}},
    ],
    ids=lambda updates: "-".join(updates) or "default",
)
def test_graphs_change_no_number(
    teacher_file: Path, updates: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    # 90 images are 11 batches of 8 and one of 2, which is not in a graph.
    plain, graphed = (
        run(teacher_file, f"graphs-{on}", {"train.cuda_graphs": on, **updates})
        for on in (False, True)
    )
    assert "CUDA graphs" not in caplog.text
    assert plain.keys() == graphed.keys()
    for key, value in plain.items():
        tolerance = 0.05 if updates.get("train.precision") == "bf16" else 1e-4
        assert graphed[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key


def test_a_network_that_waits_for_the_device_is_run_step_by_step(
    teacher_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Waiting(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            assert images.sum().item() < float("inf")
            return self.network(images)

    monkeypatch.setattr(
        tiny_networks,
        "waiting",
        lambda num_classes, in_channels=1: Waiting(tiny_networks.network(num_classes, in_channels)),
        raising=False,
    )
    updates = {"student.source": "tiny_networks:waiting", "train.cuda_graphs": True}
    graphed = run(teacher_file, "graphed", updates)
    assert "not run as CUDA graphs" in caplog.text
    plain = run(teacher_file, "plain", {**updates, "train.cuda_graphs": False})
    assert graphed == pytest.approx(plain, rel=1e-4)


def test_auto_graphs_built_in_students(teacher_file: Path) -> None:
    updates = {
        "student.source": "resnet8",
        "train.cuda_graphs": "auto",
        "data.resize": 32,
        "objective.method": "ce",
        "train.epochs": 1,
    }
    outcome = run_quietly(tiny_experiment(teacher_file, updates | {"name": "built-in"}))
    assert "in CUDA graphs" in (describe_computation(outcome.folder) or "")
    outcome = run_quietly(tiny_experiment(teacher_file, {"name": "own"}))
    assert "in CUDA graphs" not in (describe_computation(outcome.folder) or "")

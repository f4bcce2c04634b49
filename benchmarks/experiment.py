"""The experiment that benchmarks of whole runs share: digits at CIFAR's size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dcd_core import build_model


def digits_experiment(
    folder: Path,
    *,
    teacher: str,
    student: str,
    batch_size: int,
    epochs: int,
    sections: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """As plain values, with an untrained teacher: speed does not depend on its weights.

    Args:
        folder: gets the teacher's checkpoint and the runs.
        teacher: built-in network.
        student: built-in network.
        batch_size: images per step.
        epochs: of the run.
        sections: fields by section that are added or replaced.
    """
    checkpoint = folder / f"{teacher}.pt"
    if not checkpoint.exists():
        torch.manual_seed(0)
        torch.save(build_model(teacher, num_classes=10).state_dict(), checkpoint)
    values: dict[str, Any] = {
        "name": "benchmark",
        "data": {"source": "digits", "grey_to_rgb": True, "resize": 32, "test_fraction": 0.2},
        "teacher": {"source": teacher, "checkpoint": str(checkpoint), "min_top1": 0},
        "student": {"source": student},
        "train": {"epochs": epochs, "batch_size": batch_size},
        "scaling": {"gpus_per_worker": 0},
        "storage": {"path": str(folder / "runs")},
    }
    for name, fields in sections.items():
        values[name] = values.get(name, {}) | fields
    return values

"""A small experiment that trains in this process in a moment, without Ray and MLflow."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_networks
import torch
import yaml
from rich.console import Console
from torch import nn

from orchestrator.distillation import Outcome, distill
from orchestrator.experiment_file import build_experiment
from orchestrator.journal import Journal
from orchestrator.progress import Display
from orchestrator.spec import Experiment
from orchestrator.storage import Folder

_TEACHER_WIDTH = 5


def save_teacher(folder: Path, *, num_classes: int = 10, seed: int = 0) -> Path:
    """A file with the random weights of a tiny teacher for grey images."""
    torch.manual_seed(seed)
    network: nn.Module = tiny_networks.network(num_classes, width=_TEACHER_WIDTH)
    path = folder / f"teacher-{num_classes}-{seed}.pt"
    torch.save(network.state_dict(), path)
    return path


def tiny_values(checkpoint: Path | str, updates: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tiny experiment as plain values, with dotted fields changed."""
    values: dict[str, Any] = {
        "name": "tiny",
        "data": {
            "source": "digits",
            "test_fraction": 0.8,
            "val_fraction": 0.2,
            "limit": 50,
            "crop_padding": 1,
        },
        "teacher": {
            "source": "tiny_networks:network",
            "args": {"width": _TEACHER_WIDTH, "role": "teacher"},
            "checkpoint": str(checkpoint),
            "min_top1": 0,
        },
        "student": {"source": "tiny_networks:network"},
        # The same on every machine, and numbers that are exact enough to be compared.
        "train": {"epochs": 2, "batch_size": 20, "precision": "fp32"},
        "scaling": {"workers": 0},
        "tracking": {"enabled": False},
    }
    for path, value in (updates or {}).items():
        *sections, field = path.split(".")
        section = values
        for key in sections:
            section = section.setdefault(key, {})
        section[field] = copy.deepcopy(value)
    return values


def tiny_experiment(checkpoint: Path | str, updates: Mapping[str, Any] | None = None) -> Experiment:
    """The tiny experiment, with dotted fields changed."""
    return build_experiment(tiny_values(checkpoint, updates), where="test")


def write_experiment(path: Path, values: Mapping[str, Any]) -> Path:
    """An experiment file."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False))
    return path


def run_quietly(experiment: Experiment, *, new: bool = False) -> Outcome:
    """Distil without a word on the terminal."""
    return distill(experiment, new=new, display=Display(Console(file=io.StringIO())))


def recorded(run: Folder) -> dict[tuple[str, int], float]:
    """All points of a run's journal, wall times left out, by (name, step)."""
    return {
        (point.name, point.step): point.value
        for point in Journal(run).points()
        if not point.name.startswith("time/")
    }

"""Small real experiments on digits, and the command as a user types it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

from dcd_core import build_model
from orchestrator.journal import Journal, Point
from orchestrator.storage import Folder

REPOSITORY = Path(__file__).resolve().parents[2]

RAY_WARNINGS = [
    # Ray's own: sockets and processes that its shutdown leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
]
"""Marks for tests with a Ray in their own process."""


def png(digit: np.ndarray) -> bytes:
    """One of scikit-learn's digits as a file."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def save_teacher(folder: Path) -> Path:
    """A random teacher: good enough for everything but accuracy."""
    torch.manual_seed(0)
    path = folder / "teacher.pt"
    torch.save(build_model("resnet14", num_classes=10).state_dict(), path)
    return path


def experiment(teacher: Path | str, updates: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """DCD + KD on 103 digits, so that the last batch of 20 leaves the fourth of 4 workers none."""
    values: dict[str, Any] = {
        "name": "run",
        "data": {
            "source": "digits",
            "resize": 16,
            "grey_to_rgb": True,
            "crop_padding": 1,
            "flip": False,
            "test_fraction": 0.6,
            "limit": 103,
        },
        "teacher": {"source": "resnet14", "checkpoint": str(teacher), "min_top1": 0},
        "student": {"source": "resnet8"},
        "schedule": {"kind": "constant"},
        "optimizer": {"lr": 0.02},
        "train": {"epochs": 3, "batch_size": 20, "precision": "fp32"},
        # One thread each: the number of threads decides the order of sums, and so the last digits.
        "scaling": {"cpus_per_worker": 1},
        "tracking": {"enabled": False},
    }
    for path, value in (updates or {}).items():
        section = values
        *sections, field = path.split(".")
        for key in sections:
            section = section.setdefault(key, {})
        section[field] = value
    return values


def write(path: Path, values: Mapping[str, Any]) -> Path:
    """An experiment file."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False))
    return path


def points(folder: Path | str) -> list[Point]:
    """All points of a run's journal."""
    return Journal(Folder(str(folder))).points()


def epochs(folder: Path | str) -> dict[int, dict[str, float]]:
    """Metrics by epoch from a run's journal, without wall times."""
    found: dict[int, dict[str, float]] = {}
    for point in points(folder):
        if not point.name.startswith(("time/", "faults/")):
            found.setdefault(point.step, {})[point.name] = point.value
    return found


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without places or clusters of its own."""
    places = ("DCD_HOME", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    kept = {key: value for key, value in os.environ.items() if key not in places}
    return kept | {"PYTHONWARNINGS": "default"} | changes


def start(folder: Path, *arguments: str, **changes: str) -> subprocess.Popen[str]:
    """`dcd …` in a folder, its output in ``output.txt``."""
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=folder,
            env=environment(PYTHONPATH=str(REPOSITORY), **changes),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def run(folder: Path, *arguments: str, timeout: float = 240, **changes: str) -> str:
    """`dcd …` to its end; its output. Fails the test unless it exits with 0."""
    process = start(folder, *arguments, **changes)
    code = process.wait(timeout)
    output = (folder / "output.txt").read_text()
    assert code == 0, output
    return output


def wait_until(condition: Callable[[], Any], *, timeout: float = 120, what: str) -> Any:
    """The first truthy value of a condition."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {timeout:g} s")


def descendants(process: int) -> list[psutil.Process]:
    """All living processes below one."""
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def train_workers() -> list[psutil.Process]:
    """Ray Train's worker processes below this one, oldest first."""
    return titled("ray::RayTrainWorker")


def titled(start: str) -> list[psutil.Process]:
    """Processes below this one by the start of the title that Ray gives them, oldest first."""
    found = []
    for process in descendants(os.getpid()):
        with contextlib.suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith(start):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def wait_until_gone(processes: list[psutil.Process], *, timeout: float = 60) -> None:
    """Fail unless all of them end by themselves; a zombie has ended."""

    def none_left() -> bool:
        return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    try:
        wait_until(none_left, timeout=timeout, what="end of all processes")
    except psutil.NoSuchProcess:
        wait_until_gone([p for p in processes if p.is_running()], timeout=timeout)


def kill(process: int, number: int = signal.SIGKILL) -> None:
    """Send a signal."""
    os.kill(process, number)

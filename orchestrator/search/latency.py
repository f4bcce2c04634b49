"""How long each student of a search takes for one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from orchestrator.latency import measure_latency
from orchestrator.progress import Display
from orchestrator.storage import Folder
from orchestrator.student_model import load_student, read_package

FILE = "latency.json"


def measure_latencies(students: Sequence[Folder], *, display: Display) -> None:
    """Measure those not measured yet, one after the other, and write ``latency.json`` beside each.

    Args:
        students: folders of finished runs. No other trial may be running.
        display: where progress is shown.
    """
    left = [folder for folder in students if folder.read(FILE) is None]
    if not left:
        return
    with display.step(f"measuring the latency of {len(left)} students, one at a time"):
        for folder in left:
            folder.write_json(FILE, _measure(folder))


def _measure(folder: Folder) -> dict[str, float | str]:
    """The median time for a batch of one image, in milliseconds, on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = load_student(folder.location, with_normalization=True).to(device)
    latency = measure_latency(student, read_package(folder.location).image_shape, device=device)
    return {
        "latency_ms": latency.median_ms,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }

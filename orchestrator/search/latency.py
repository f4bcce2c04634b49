"""How long a student takes for one image, measured alone on the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from orchestrator.progress import Display
from orchestrator.storage import Folder
from orchestrator.student_model import load_student, read_package

FILE = "latency.json"
_WARM_UP, _TIMED = 10, 50


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
            folder.write_json(FILE, measure_latency(folder))


def measure_latency(folder: Folder) -> dict[str, float | str]:
    """The median time for a batch of one image, in milliseconds, on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = load_student(folder.location, with_normalization=True).to(device)
    shape = read_package(folder.location).image_shape
    image = torch.zeros((1, *shape), dtype=torch.uint8, device=device)
    seconds = []
    with torch.inference_mode():
        for _ in range(_WARM_UP + _TIMED):
            _wait(device)
            started = time.perf_counter()
            student(image)
            _wait(device)
            seconds.append(time.perf_counter() - started)
    return {
        "latency_ms": 1000 * statistics.median(seconds[_WARM_UP:]),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

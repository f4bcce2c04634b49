"""How long a classifier takes for a batch of raw images, alone on the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

_WARM_UP, _TIMED = 10, 50
# Large networks need not be timed as often: these end both phases early, after a few runs.
_WARM_UP_S, _TIMED_S = 2.0, 20.0
_LEAST_WARM_UP, _LEAST_TIMED = 2, 10


class Latency(NamedTuple):
    """The time of one forward pass, in milliseconds."""

    batch_size: int
    median_ms: float
    p95_ms: float
    warm_up: int
    """Runs before, which are not counted."""
    runs: int
    """Runs that are counted."""


def measure_latency(
    classifier: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    batch_size: int = 1,
    device: torch.device,
) -> Latency:
    """Time a classifier on images that lie on the device already.

    Args:
        classifier: in eval mode, on the device; takes uint8 (B, C, H, W).
        image_shape: (C, H, W).
        batch_size: B.
        device: where it runs; a GPU is waited for before and after each run.
    """
    images = torch.zeros((batch_size, *image_shape), dtype=torch.uint8, device=device)

    def run() -> float:
        _wait(device)
        started = time.perf_counter()
        classifier(images)
        _wait(device)
        return time.perf_counter() - started

    with torch.inference_mode():
        warm_up = _repeat(run, _WARM_UP, least=_LEAST_WARM_UP, budget_s=_WARM_UP_S)
        seconds = _repeat(run, _TIMED, least=_LEAST_TIMED, budget_s=_TIMED_S)
    milliseconds = 1000 * np.array(seconds)
    return Latency(
        batch_size=batch_size,
        median_ms=float(np.median(milliseconds)),
        p95_ms=float(np.percentile(milliseconds, 95)),
        warm_up=len(warm_up),
        runs=len(seconds),
    )


def _repeat(run: Callable[[], float], most: int, *, least: int, budget_s: float) -> list[float]:
    seconds: list[float] = []
    while len(seconds) < most and (len(seconds) < least or sum(seconds) < budget_s):
        seconds.append(run())
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

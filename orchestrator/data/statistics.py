"""Mean and standard deviation of pixels, from counts of their values.

C: channels.
"""

from __future__ import annotations

import os
from typing import NamedTuple, TypedDict

import numpy as np

from orchestrator.data.raw import Integers, Pixels
from orchestrator.data.reading import Failure, read_tasks
from orchestrator.data.streamed import StreamedSet, check_failures, describe_failure
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

_CHUNK = 4096  # images; bounds the integer copy that counting pixel values makes


class Statistics(TypedDict):
    """Of pixel values scaled to [0, 1]."""

    mean: tuple[float, ...]
    """(C,)."""
    std: tuple[float, ...]
    """(C,)."""


class Sample(NamedTuple):
    """What there is to know of images without holding them."""

    num_images: int
    counts: Integers  # (C, 256), as of `count_values`
    examples: Pixels  # (2, C, H, W), or fewer where there are no more


def measure_sample(split: StreamedSet, *, seed: int) -> Sample:
    """Count the values in a sample of a split.

    Raises:
        UserError: none of it, or not all, can be decoded.
    """
    num_images, counts = 0, np.zeros((split.shape[0], 256), dtype=np.int64)
    examples = np.empty((0, *split.shape), dtype=np.uint8)
    failures: list[Failure] = []
    tasks = split.sample(seed)
    threads = min(os.cpu_count() or 1, 16)
    for rows in read_tasks(tasks, split.form, threads=threads, memory=split.memory // 4):
        check_failures(rows.failures, split)
        failures += rows.failures
        num_images += len(rows.images)
        counts += count_values(rows.images)
        examples = np.concatenate([examples, rows.images[: 2 - len(examples)]])
    if len(examples) == 0:
        raise UserError(
            f"none of {len(failures):,} training images could be decoded, first "
            f"{describe_failure(failures[0], split)}"
        )
    return Sample(num_images, counts, examples)


def count_values(images: Pixels) -> Integers:
    """(C, 256) how often each value occurs in each channel."""
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    return counts


def channel_statistics(counts: Integers, spec: DataSpec) -> Statistics:
    """(C,) mean and (C,) standard deviation of values / 255, exact: from counts of each value.

    Raises:
        UserError: nothing can be divided by the standard deviation, and would be.
    """
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)  # (C, 256)
    means = shares @ values  # (C,)
    variances = (shares * (values - means[:, None]) ** 2).sum(axis=1)  # (C,)
    std = tuple(np.sqrt(variances).tolist())
    if spec.normalize is None and min(std) == 0:
        raise UserError(
            f"channel {std.index(0)} has one value in all pixels of all training images, so its "
            "standard deviation is 0: set data.normalize"
        )
    return {"mean": tuple(means.tolist()), "std": std}

"""From tasks to decoded images, a bounded number of them in memory.

n: images read together, C, H, W: channels, height, width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import NamedTuple

import numpy as np

from orchestrator.data.decode import Undecodable, decode_stream
from orchestrator.data.raw import Integers, Pixels, RawImage, Reader
from orchestrator.data.tasks import ImageForm, Task
from orchestrator.errors import UserError

_IMAGES_PER_TURN = 32


class Failure(NamedTuple):
    """An image that could not be had, or a file."""

    position: int | None
    """Of the image in its source; None where a whole file cannot be read."""
    reason: str
    skippable: bool
    """Whether `on_error: skip` covers it."""


class Rows(NamedTuple):
    """Some images, and what could not be had of those that were asked for."""

    images: Pixels  # (n, C, H, W)
    labels: Integers  # (n,)
    indices: Integers  # (n,) in the source
    failures: Sequence[Failure]

    def before(self, number: int) -> Rows:
        """Some of the images, from the first."""
        images, labels, indices, _ = self
        return Rows(images[:number], labels[:number], indices[:number], ())

    def after(self, number: int) -> Rows:
        """What comes after some of the images."""
        images, labels, indices, _ = self
        return Rows(images[number:], labels[number:], indices[number:], ())


def read_tasks(
    tasks: Sequence[Task], form: ImageForm, *, threads: int, memory: int
) -> Iterator[Rows]:
    """Read and decode in threads of this process, in order.

    Args:
        tasks: what to read.
        form: what to make of it.
        threads: that decode.
        memory: bytes that decoded images may take.
    """
    if tasks:
        # As one, for the threads would wait at the end of each.
        whole = Task(
            _Several([task.reader for task in tasks]),
            np.concatenate([task.indices for task in tasks]),
            np.concatenate([task.labels for task in tasks]),
        )
        yield from decode_task(whole, form, threads=threads, memory=memory)


def decode_task(task: Task, form: ImageForm, *, threads: int, memory: int) -> Iterator[Rows]:
    """The images of a task, in order.

    Args:
        task: what to read.
        form: what to make of it.
        threads: that decode.
        memory: bytes that images may take: half of it those that are being decoded.
    """
    rows_at_once = max(1, memory // 2 // form.num_bytes)
    in_flight = max(threads, rows_at_once)
    per_turn = max(1, min(_IMAGES_PER_TURN, in_flight // threads))
    stream = decode_stream(
        task.reader.read(),
        size=form.size,
        crop=form.crop,
        grey_to_rgb=form.grey_to_rgb,
        threads=threads,
        images_per_task=per_turn,
        tasks_in_flight=max(1, in_flight // per_turn),
    )
    with closing(stream):
        for first in range(0, len(task.indices), rows_at_once):
            part = slice(first, first + rows_at_once)
            rows = _next_rows(stream, task.indices[part], task.labels[part], form)
            yield rows
            if not all(failure.skippable for failure in rows.failures):
                return


class _Several(NamedTuple):
    readers: Sequence[Reader]

    def read(self) -> Iterator[RawImage]:
        return chain.from_iterable(reader.read() for reader in self.readers)


def _next_rows(
    stream: Iterator[Pixels | Undecodable], indices: Integers, labels: Integers, form: ImageForm
) -> Rows:
    images = np.empty((len(indices), *form.shape), dtype=np.uint8)
    kept: list[int] = []
    failures: list[Failure] = []
    for row, position in enumerate(indices.tolist()):
        try:
            pixels = next(stream)
        except UserError as error:
            failures.append(Failure(None, str(error), skippable=False))
            break
        if isinstance(pixels, Undecodable):
            failures.append(Failure(position, str(pixels), skippable=True))
            continue
        channels_first = pixels.transpose(2, 0, 1)  # (C, H, W)
        if channels_first.shape != form.shape:
            reason = (
                f"is {_text(channels_first.shape)} and the first image {_text(form.shape)} "
                "(channels x height x width): set data.resize or data.grey_to_rgb"
            )
            failures.append(Failure(position, reason, skippable=False))
            break
        images[len(kept)] = channels_first
        kept.append(row)
    return Rows(images[: len(kept)], labels[kept], indices[kept], failures)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))

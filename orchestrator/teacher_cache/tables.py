"""The rows at hand, by the position of their image.

Shape letters: M images of the split, m rows of a piece, n rows asked for, K classes, D feature
dimensions.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from orchestrator.batches import to_device
from orchestrator.teacher_cache.rows import Rows
from orchestrator.teaching import Answers

_DEVICE_SHARE = 0.1
"""A view lies on a GPU when it takes no more than this share of the memory that is free there."""


class Table(Protocol):
    """Rows of one view."""

    def add(self, rows: Rows) -> None:
        """Take rows up."""
        ...

    def take(self, positions: Tensor) -> Answers:
        """The rows of images (n,) that are there, on the device."""
        ...

    def clear(self) -> None:
        """Forget all rows."""
        ...


def make_table(num_images: int, device: torch.device, *, bytes_per_row: int) -> Table:
    """On a GPU with room for all rows, a copy there, which a step reads without waiting; else views
    of the files.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if num_images * bytes_per_row <= _DEVICE_SHARE * free:
            return Resident(num_images, device)
    return Mapped(num_images, device)


class Mapped:
    """Rows stay in the files."""

    def __init__(self, num_images: int, device: torch.device) -> None:
        self._device = device
        self._pieces: list[Rows] = []
        self._piece = torch.full((num_images,), -1, dtype=torch.int32)  # (M,)
        self._row = torch.zeros(num_images, dtype=torch.int64)  # (M,)

    def add(self, rows: Rows) -> None:
        """Take rows up."""
        self._piece[rows.positions] = len(self._pieces)
        self._row[rows.positions] = torch.arange(len(rows.positions))
        self._pieces.append(rows)

    def take(self, positions: Tensor) -> Answers:
        """The rows of images (n,), which must be there."""
        positions = positions.cpu()
        pieces, rows = self._piece[positions], self._row[positions]
        numbers = pieces.unique().tolist()
        if len(numbers) == 1:
            found = self._pieces[numbers[0]]
            return self._answers(found.logits[rows], found.features[rows])
        logits, features = (
            first.new_empty(len(positions), first.shape[1]) for first in self._pieces[0][1:]
        )
        for number in numbers:
            found, mask = self._pieces[number], pieces == number
            logits[mask], features[mask] = found.logits[rows[mask]], found.features[rows[mask]]
        return self._answers(logits, features)

    def clear(self) -> None:
        """Let go of the files."""
        self._pieces.clear()
        self._piece.fill_(-1)

    def _answers(self, logits: Tensor, features: Tensor) -> Answers:
        return Answers(*(to_device(part, self._device).float() for part in (logits, features)))


class Resident:
    """All rows in the device's memory."""

    def __init__(self, num_images: int, device: torch.device) -> None:
        self._num_images = num_images
        self._device = device
        self._all: tuple[Tensor, Tensor] | None = None  # (M, K), (M, D)

    def add(self, rows: Rows) -> None:
        """Copy rows."""
        if self._all is None:
            logits, features = (
                torch.empty(self._num_images, part.shape[1], dtype=part.dtype, device=self._device)
                for part in rows[1:]
            )
            self._all = logits, features
        positions = to_device(rows.positions, self._device)
        for whole, part in zip(self._all, rows[1:], strict=True):
            whole[positions] = to_device(part, self._device)

    def take(self, positions: Tensor) -> Answers:
        """The rows of images (n,), which must be there."""
        assert self._all is not None
        own = to_device(positions, self._device)
        return Answers(*(whole[own].float() for whole in self._all))

    def clear(self) -> None:
        """The memory is kept for the next view."""

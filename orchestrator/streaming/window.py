"""A bounded number of images in memory, from which they are drawn at random."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.data.raw import Integers, Pixels
from orchestrator.data.reading import Rows


class ShuffleWindow:
    """Images come in as they are read and go out at random.

    Args:
        capacity: images that it holds at most.
        shape: (C, H, W) of an image.
        seed: decides, with the order in which images come in and how many are drawn at a time, the
            order in which they go out.
    """

    def __init__(self, capacity: int, *, shape: tuple[int, int, int], seed: int) -> None:
        self._images: Pixels = np.empty((capacity, *shape), dtype=np.uint8)
        self._labels: Integers = np.empty(capacity, dtype=np.int64)
        self._indices: Integers = np.empty(capacity, dtype=np.int64)
        self._size = 0
        self._random = np.random.default_rng(seed)
        self._waiting: Rows | None = None

    def __len__(self) -> int:
        return self._size

    def fill(self, source: Iterator[Rows]) -> None:
        """Take images in until it is full or there are no more."""
        while self._size < len(self._labels):
            rows = self._waiting or next(source, None)
            if rows is None:
                return
            start, end = self._size, min(self._size + len(rows.labels), len(self._labels))
            taken = end - start
            self._images[start:end] = rows.images[:taken]
            self._labels[start:end] = rows.labels[:taken]
            self._indices[start:end] = rows.indices[:taken]
            self._size = end
            self._waiting = rows.after(taken) if taken < len(rows.labels) else None

    def draw(self, num_images: int) -> Rows:
        """Remove some at random; their order is random too."""
        drawn = self._random.permutation(self._size)[:num_images]  # (n,)
        rows = Rows(self._images[drawn], self._labels[drawn], self._indices[drawn], ())
        # The last ones move to the places that have become free.
        self._size -= num_images
        free = drawn[drawn < self._size]
        last = np.setdiff1d(np.arange(self._size, self._size + num_images), drawn)
        for array in (self._images, self._labels, self._indices):
            array[free] = array[last]
        return rows

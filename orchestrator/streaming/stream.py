"""A split that is read and decoded as it is needed.

C, H, W: channels, height, width of an image, n: images on this rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dcd_core import mix
from orchestrator.data import StreamedSet
from orchestrator.data.reading import Rows
from orchestrator.data.streamed import check_failures, describe_failure
from orchestrator.data.tasks import Task
from orchestrator.errors import UserError
from orchestrator.reporter import Ranks
from orchestrator.streaming.agreement import Agreement, agreed_counts, raise_together
from orchestrator.streaming.window import ShuffleWindow

logger = logging.getLogger(__name__)

_WINDOW_STREAM = 14
"""Stream of `mix` for what is drawn from the window; 0 to 13 have other uses."""
_NAMED = 3  # skipped images that are named in the log

Read: TypeAlias = Callable[[Sequence[Task], StreamedSet], Iterator[Rows]]
"""Reads and decodes tasks, in order, in no more memory than half of what the set may take."""


class Batch(NamedTuple):
    """This rank's images of a batch that all ranks share."""

    images: Tensor  # (n, C, H, W) uint8
    labels: Tensor  # (n,) int64
    indices: Tensor  # (n,) int64, in the source
    counts: list[int]
    """Images on each rank."""


class Stream:
    """One split.

    Args:
        split: what is read.
        ranks: the processes that share it. Each of them makes one at the same time.
        read: how.
    """

    def __init__(self, split: StreamedSet, ranks: Ranks, *, read: Read) -> None:
        self._split = split
        self._ranks = ranks
        self._read = read
        self._skipped = 0
        self._skipped_by_all = 0
        self._agreement: Agreement | None = None  # only training needs one

    @property
    def num_images(self) -> int:
        """Of the split, those among them that cannot be decoded."""
        return len(self._split)

    @property
    def examples(self) -> Tensor:
        """Two images of the training split, (2, C, H, W) uint8."""
        return torch.from_numpy(np.array(self._split.examples))

    def metrics(self) -> dict[str, float]:
        """What there is to tell about the last epoch."""
        return {"data/skipped": self._skipped_by_all} if self._split.on_error == "skip" else {}

    def epoch(self, epoch: int, *, seed: int, batch_size: int) -> Iterator[Batch]:
        """Each image once, in random order, in batches that all ranks share.

        The order depends on (seed, epoch) and the number of ranks.

        Args:
            epoch: counted from 1.
            seed: decides the order.
            batch_size: images of a batch over all ranks; the last one has what is left.

        Raises:
            UserError: on all ranks, an image or a file of any of them cannot be read.
        """
        split, ranks = self._split, self._ranks
        tasks = split.tasks(rank=ranks.rank, num_ranks=ranks.size, order=(seed, epoch))
        window = ShuffleWindow(
            min(split.window, sum(len(task.labels) for task in tasks)),
            shape=split.shape,
            seed=int(mix(seed, epoch, torch.tensor([ranks.rank]), _WINDOW_STREAM)),
        )
        self._skipped = 0
        rows = self._rows(tasks)
        agreement = self._agreement = self._agreement or Agreement(ranks)

        def offer() -> None:
            error = None
            try:
                window.fill(rows)
            except UserError as raised:
                error = str(raised)
            agreement.say(min(len(window), batch_size), skipped=self._skipped, error=error)

        offer()
        while True:
            offers, self._skipped_by_all = agreement.hear()
            counts = agreed_counts(offers, batch_size)
            if sum(counts) == 0:
                return
            drawn = window.draw(counts[ranks.rank])
            offer()  # before this batch is computed on, so that the answer is there after it
            images, labels, indices = (torch.from_numpy(part) for part in drawn[:3])
            yield Batch(images, labels, indices, counts)

    def batches(self, ranks: Ranks, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share in the order of the source: images (n, C, H, W) uint8, labels (n,).

        Raises:
            UserError: on all ranks, an image or a file of any of them cannot be read.
        """
        error = None
        self._skipped = 0
        try:
            tasks = self._split.tasks(rank=ranks.rank, num_ranks=ranks.size)
            yield from _in_batches(self._rows(tasks), batch_size)
        except UserError as raised:
            error = str(raised)
        raise_together(error, ranks)

    def _rows(self, tasks: Sequence[Task]) -> Iterator[Rows]:
        for rows in self._read(tasks, self._split):
            check_failures(rows.failures, self._split)
            for failure in rows.failures:
                self._skipped += 1
                if self._skipped <= _NAMED:
                    logger.warning("skipped: %s", describe_failure(failure, self._split))
            yield rows


def _in_batches(source: Iterator[Rows], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, as many at a time whatever they were read in."""
    waiting: list[Rows] = []
    missing = batch_size
    for rows in source:
        while len(rows.labels) >= missing:
            yield _joined([*waiting, rows.before(missing)])
            rows = rows.after(missing)
            waiting, missing = [], batch_size
        waiting.append(rows)
        missing -= len(rows.labels)
    if missing < batch_size:
        yield _joined(waiting)


def _joined(parts: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    images, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return torch.from_numpy(images), torch.from_numpy(labels)

"""What ranks tell each other while each of them reads a share of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.reporter import Ranks

_FAILED = -1


class Said(NamedTuple):
    """What all ranks have said."""

    offers: list[int]
    """How many images each has at hand."""
    skipped: int
    """How many images they have skipped so far in all."""


class Agreement:
    """Ranks tell how many images they have, and nobody waits: the answer is needed a step later.

    Ranks that disagree on the number of batches would wait for each other for ever.

    Args:
        ranks: the processes that train together. Each of them makes one at the same time.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        # Of its own: the one that gradients go through may be on GPUs, where asking would wait.
        group = dist.new_group(backend="gloo") if ranks.size > 1 else None
        assert not isinstance(group, int)  # what a process gets that is not in it
        self._group = group
        self._said: list[Tensor] = []
        self._work: dist.Work | None = None
        self._error: str | None = None

    def say(self, offer: int, *, skipped: int, error: str | None) -> None:
        """Tell the other ranks.

        Args:
            offer: how many images this rank has at hand.
            skipped: how many it has skipped so far.
            error: why it cannot go on.
        """
        self._error = error
        own = torch.tensor([offer if error is None else _FAILED, skipped])
        self._said = [own]
        if self._group is not None:
            self._said = [torch.empty_like(own) for _ in range(self._ranks.size)]
            self._work = dist.all_gather(self._said, own, group=self._group, async_op=True)

    def hear(self) -> Said:
        """What all ranks have said.

        Raises:
            UserError: one of them cannot go on; all raise alike.
        """
        if self._work is not None:
            self._work.wait()
        offers, skipped = torch.stack(self._said).T.tolist()
        if _FAILED in offers:
            raise_together(self._error, self._ranks)
        return Said(offers, sum(skipped))


def raise_together(error: str | None, ranks: Ranks) -> None:
    """Raise on all ranks where one has an error: were it alone, the others would wait for it.

    Raises:
        UserError: the first rank's that has one.
    """
    errors: list[str | None] = [error]
    if ranks.size > 1:
        errors = [None] * ranks.size
        dist.all_gather_object(errors, error)
    for message in errors:
        if message is not None:
            raise UserError(message)


def agreed_counts(offers: Sequence[int], num_images: int) -> list[int]:
    """How many images each rank gives to a batch: as even as what they have at hand allows.

    Args:
        offers: how many each has.
        num_images: of the batch; fewer where all together have no more.
    """
    counts = [0] * len(offers)
    while (left := min(num_images, sum(offers)) - sum(counts)) > 0:
        able = [rank for rank, offer in enumerate(offers) if offer > counts[rank]]
        for rank in able[:left]:
            counts[rank] += min(max(1, left // len(able)), offers[rank] - counts[rank])
    return counts

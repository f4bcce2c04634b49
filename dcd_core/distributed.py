"""Rows shared among ranks: who holds how many, and a gather that gradients flow through.

Shape letters: n rows on this rank, N rows on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def shares(num_rows: int, num_ranks: int) -> list[int]:
    """How many rows each rank holds: they differ by one at most, larger shares first."""
    if num_rows < 0 or num_ranks < 1:
        raise ValueError(f"cannot share {num_rows} rows among {num_ranks} ranks")
    whole, rest = divmod(num_rows, num_ranks)
    return [whole + (rank < rest) for rank in range(num_ranks)]


def gather_rows(
    rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None = None
) -> Tensor:
    """Concatenate the rows of all ranks, in rank order.

    The gradient of a row is the sum of what every rank sends back for it. Every rank must take
    part, one without rows too, and must run the backward pass if any rank does.

    Args:
        rows: this rank's rows, (n, ...). Integers are gathered as they are.
        counts: number of rows on each rank, known to all; with a single rank the result is
            ``rows`` itself.
        group: the ranks; by default all.

    Returns:
        All rows, (N, ...).

    Raises:
        ValueError: ``counts`` does not fit the group or the rows.
    """
    if len(counts) == 1:
        if rows.shape[0] != counts[0]:
            raise ValueError(f"counts says {counts[0]} rows but there are {rows.shape[0]}")
        return rows
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    if len(counts) != num_ranks:
        raise ValueError(f"counts has {len(counts)} entries for {num_ranks} ranks")
    if rows.shape[0] != counts[rank]:
        raise ValueError(f"counts says {counts[rank]} rows on rank {rank}, not {rows.shape[0]}")
    gathered: Tensor = _GatherRows.apply(rows, tuple(counts), group)
    return gathered


class _GatherRows(torch.autograd.Function):
    """All-gather of rows padded to the largest share, since collectives want equal shapes."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, counts: tuple[int, ...], group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.group = group
        ctx.first = sum(counts[: dist.get_rank(group)])
        ctx.num_rows = rows.shape[0]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # A copy: the reduction is in place and the incoming gradient belongs to autograd.
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.first : ctx.first + ctx.num_rows], None, None

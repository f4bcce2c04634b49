from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from rank_pool import RankPool
from torch import Tensor

from dcd_core import gather_rows, shares


@pytest.mark.parametrize(
    ("num_rows", "num_ranks", "expected"),
    [(8, 4, [2, 2, 2, 2]), (7, 4, [2, 2, 2, 1]), (2, 4, [1, 1, 0, 0]), (0, 2, [0, 0])],
)
def test_shares_differ_by_one_at_most_with_the_larger_first(
    num_rows: int, num_ranks: int, expected: list[int]
) -> None:
    assert shares(num_rows, num_ranks) == expected


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot share"):
        shares(4, 0)
    with pytest.raises(ValueError, match="cannot share"):
        shares(-1, 2)


def test_one_process_gets_its_own_rows_back() -> None:
    rows = torch.randn(3, 2)
    assert gather_rows(rows, [3]) is rows
    with pytest.raises(ValueError, match="counts says 4 rows but there are 3"):
        gather_rows(rows, [4])


def _gather(
    rank: int, group: dist.ProcessGroup | None, counts: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with known values, and a loss on each rank that weights every row by the rank."""
    first = sum(counts[:rank])
    values = torch.arange(first, first + counts[rank]).double()
    rows = torch.stack([values, 10 * values], dim=1).requires_grad_()  # (n, 2)
    gathered = gather_rows(rows, counts, group)
    ((rank + 1) * torch.arange(len(gathered)).double() * gathered[:, 1]).sum().backward()
    assert rows.grad is not None
    labels = gather_rows(values.to(torch.int64), counts, group)
    return gathered.detach(), labels, rows.grad


@pytest.mark.parametrize("counts", [[2, 2], [3, 1], [0, 2], [2, 2, 1, 1], [3, 0, 2, 0]], ids=str)
def test_gathered_rows_are_in_rank_order_and_their_gradients_summed_over_ranks(
    ranks: RankPool, counts: list[int]
) -> None:
    total = sum(counts)
    expected = torch.arange(total).double()
    first = 0
    weight_of_all_ranks = sum(range(1, len(counts) + 1))
    for count, (gathered, labels, grad) in zip(
        counts, ranks.run(len(counts), _gather, counts), strict=True
    ):
        assert gathered.tolist() == torch.stack([expected, 10 * expected], dim=1).tolist()
        assert labels.tolist() == list(range(total))
        own = range(first, first + count)
        assert grad.tolist() == [[0, weight_of_all_ranks * row] for row in own]
        first += count


def _gather_wrong_counts(rank: int, group: dist.ProcessGroup | None, counts: list[int]) -> str:
    try:
        gather_rows(torch.zeros(2, 3), counts, group)
    except ValueError as error:
        return str(error)
    return "accepted"


def test_counts_that_do_not_fit_are_refused(ranks: RankPool) -> None:
    assert ranks.run(2, _gather_wrong_counts, [2, 2, 2]) == ["counts has 3 entries for 2 ranks"] * 2
    assert ranks.run(2, _gather_wrong_counts, [1, 1]) == [
        "counts says 1 rows on rank 0, not 2",
        "counts says 1 rows on rank 1, not 2",
    ]

"""On several ranks each method is what it is in one process on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_pool import RankPool
from tiny import NUM_CLASSES, TEACHER_DIM, TinyNet
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dcd_core import Distiller, FeatureModel, Objective
from dcd_core.features import HintedOutput
from dcd_core.objectives import METHODS, Lesson, NetworkSizes, Rows, Sizes

SMALL: dict[str, dict[str, Any]] = {
    "crd": {"num_negatives": 11, "projection_dim": 3},
    "crd_batch": {"projection_dim": 3},
    "rrd": {"queue_size": 10, "projection_dim": 3},
}
TRAIN_LABELS = torch.arange(20) % 3
NUM_STEPS = 2  # the second meets banks and queues that the first has filled


def _distiller(name: str) -> Distiller:
    torch.manual_seed(1)
    example = torch.zeros(2, 3, 8, 8)
    student = FeatureModel(TinyNet(), images_example=example)
    student.capture_hints(["conv"], images_example=example)
    sizes = Sizes(
        NetworkSizes(student.feature_dim, student.hint_shapes),
        NetworkSizes(TEACHER_DIM, ((4, 4, 4),)),
        TRAIN_LABELS,
        seed=4,
    )
    method = METHODS[name](sizes, **SMALL.get(name, {}))
    return Distiller(student, teacher_dim=None, method=method).double()


def _batch(step: int, counts: list[int], rank: int) -> tuple[Tensor, Lesson]:
    draw = torch.Generator().manual_seed(step)
    num_images = sum(counts)

    def noise(*shape: int) -> Tensor:
        return torch.randn(num_images, *shape, generator=draw, dtype=torch.float64)

    images = noise(3, 8, 8)
    teacher = HintedOutput(3 * noise(NUM_CLASSES), noise(TEACHER_DIM), (noise(4, 4, 4),))
    positions = torch.randperm(len(TRAIN_LABELS), generator=draw)[:num_images]
    rows = Rows(counts, rank)
    own = slice(rows.first, rows.first + counts[rank])
    said = HintedOutput(teacher.logits[own], teacher.features[own], (teacher.hints[0][own],))
    return images[own], Lesson(said, TRAIN_LABELS[positions][own], rows, positions, epoch=step + 3)


def _learn(
    name: str,
    counts: list[int],
    rank: int = 0,
    group: dist.ProcessGroup | None = None,
    *,
    distributed: bool = False,
) -> tuple[list[float], dict[str, Tensor | None], dict[str, Tensor]]:
    """The losses, the last gradients, and what is kept."""
    distiller = _distiller(name)
    module: torch.nn.Module = distiller
    if distributed:
        module = DistributedDataParallel(distiller, process_group=group, broadcast_buffers=False)
    objective = Objective(ce_weight=0.7, kd_weight=0, dcd_weight=0, method=name, method_weight=1.3)
    losses = []
    for step in range(NUM_STEPS):
        distiller.zero_grad()
        images, taught = _batch(step, counts, rank)
        taught = taught._replace(rows=Rows(counts, rank, group))
        found = objective(
            module(images, None, taught),
            labels=taught.labels,
            counts=counts,
            rank=rank,
            group=group,
        )
        found.total.backward()
        losses.append(found.terms[name].item())
    grads = {key: p.grad for key, p in distiller.named_parameters() if p.requires_grad}
    return losses, grads, dict(distiller.named_buffers())


def _learn_on_a_rank(
    rank: int, group: dist.ProcessGroup | None, name: str, counts: list[int]
) -> tuple[list[float], dict[str, Tensor | None], dict[str, Tensor]]:
    return _learn(name, counts, rank, group, distributed=True)


@pytest.mark.parametrize("counts", [[3, 3], [4, 1], [2, 0], [1, 0], [2, 2, 2, 1]], ids=str)
@pytest.mark.parametrize("name", list(METHODS))
def test_loss_gradients_and_banks_equal_one_process_on_the_whole_batch(
    ranks: RankPool, name: str, counts: list[int]
) -> None:
    losses, grads, buffers = _learn(name, [sum(counts)])
    answers = ranks.run(len(counts), _learn_on_a_rank, name, counts)
    for step, value in enumerate(losses):
        mean = sum(found[step] for found, _, _ in answers) / len(counts)
        assert mean == pytest.approx(value, rel=1e-10, abs=1e-12)
    for _, found, kept in answers:
        assert found.keys() == grads.keys()
        for key, grad in grads.items():
            torch.testing.assert_close(found[key], grad, rtol=1e-9, atol=1e-11, msg=key)
        for key, buffer in buffers.items():
            torch.testing.assert_close(kept[key], buffer, rtol=1e-12, atol=1e-12, equal_nan=True)
    # All ranks hold the same bits, so that nobody needs to send them.
    for _, _, kept in answers[1:]:
        for key, buffer in answers[0][2].items():
            torch.testing.assert_close(kept[key], buffer, rtol=0, atol=0, equal_nan=True)

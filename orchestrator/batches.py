"""How to train, in plain values, and the batches that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dcd_core import FrozenTeacher, MicroBatch, normalize, shares
from orchestrator.evaluation import Images, PixelStatistics
from orchestrator.reporter import Ranks


@dataclass(frozen=True)
class Recipe:
    """How to train, in plain values."""

    epochs: int
    batch_size: int
    """Images per optimizer step, over all ranks and micro-batches."""
    accumulate: int
    precision: torch.dtype
    memory_format: torch.memory_format
    """Of the student's images."""
    max_grad_norm: float | None
    seed: int
    data_seed: int
    augment: Callable[[Tensor, Tensor, int], Tensor]
    """(images uint8 (B, C, H, W), source indices (B,), epoch) -> images uint8."""
    lr_factor: Callable[[float], float]
    """Epochs done (with fractions) -> factor on each group's learning rate."""
    student_pixels: PixelStatistics
    teacher_pixels: PixelStatistics | None


def micro_batches(
    batch: Tensor,
    teacher: FrozenTeacher | None,
    *,
    epoch: int,
    training: Images,
    recipe: Recipe,
    ranks: Ranks,
    takes_features: bool,
    needs_features: bool,
    needs_logits: bool,
) -> Iterator[MicroBatch]:
    """This rank's part of each micro-batch of one optimizer step.

    Args:
        batch: positions in the split, over all ranks, (B,).
        takes_features: whether the distiller has heads, which do not run without features.
        needs_features: whether the loss depends on them.
        needs_logits: whether it depends on the teacher's logits.
    """
    for micro in batch.split(recipe.batch_size // recipe.accumulate):
        counts = shares(len(micro), ranks.size)
        first = sum(counts[: ranks.rank])
        own = micro[first : first + counts[ranks.rank]]  # (n,)
        indices = training.indices[own].to(ranks.device, non_blocking=True)
        images = training.images[own].to(ranks.device, non_blocking=True)
        images = recipe.augment(images, indices, epoch)  # (n, C, H, W) uint8
        logits = features = None
        if teacher is not None and recipe.teacher_pixels is not None:
            if needs_logits or needs_features:
                logits, features = _teach(teacher, images, pixels=recipe.teacher_pixels)
            elif takes_features:  # any will do, and these cost no pass of the teacher
                features = torch.zeros(len(images), teacher.feature_dim, device=ranks.device)
        pixels = recipe.student_pixels
        yield MicroBatch(
            images=normalize(images, mean=pixels.mean, std=pixels.std).contiguous(
                memory_format=recipe.memory_format
            ),
            labels=training.labels[own].to(ranks.device, non_blocking=True),
            teacher_logits=logits if needs_logits else None,
            teacher_features=features if takes_features else None,
            counts=counts,
        )


def _teach(
    teacher: FrozenTeacher, images: Tensor, *, pixels: PixelStatistics
) -> tuple[Tensor, Tensor]:
    """The frozen teacher's logits (n, K) and features (n, D)."""
    inputs = normalize(images, mean=pixels.mean, std=pixels.std)
    if len(images) == 0:  # many networks cannot run on no image: run one and take no row of it
        inputs = torch.zeros(1, *inputs.shape[1:], device=inputs.device)
    output = teacher(inputs)
    return output.logits[: len(images)], output.features[: len(images)]

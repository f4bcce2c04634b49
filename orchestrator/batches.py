"""How to train, in plain values, and the batches that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dcd_core import MicroBatch, normalize, shares
from orchestrator.evaluation import Images, PixelStatistics
from orchestrator.reporter import Ranks
from orchestrator.teaching import Teaching


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
    """(images uint8 (B, C, H, W), source indices (B,), view) -> images uint8."""
    lr_factor: Callable[[float], float]
    """Epochs done (with fractions) -> factor on each group's learning rate."""
    student_pixels: PixelStatistics
    views: int | None = None
    """After so many epochs, images are augmented again as they were in the first."""
    crop_size: int | None = None
    """Side of the square from the centre that is evaluated; None for whole images."""

    def view(self, epoch: int) -> int:
        """Which augmentation of the images an epoch sees; both are counted from 1."""
        return epoch if self.views is None else (epoch - 1) % self.views + 1


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device while it works on something else, which takes pinned memory."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def micro_batches(
    batch: Tensor,
    teaching: Teaching | None,
    *,
    epoch: int,
    place: int,
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
        teaching: where the teacher's answers come from.
        place: of the batch's first image in the order of the epoch.
        takes_features: whether the distiller has heads, which do not run without features.
        needs_features: whether the loss depends on them.
        needs_logits: whether it depends on the teacher's logits.
    """
    for micro in batch.split(recipe.batch_size // recipe.accumulate):
        counts = shares(len(micro), ranks.size)
        first = sum(counts[: ranks.rank])
        own = micro[first : first + counts[ranks.rank]]  # (n,)
        indices = to_device(training.indices[own], ranks.device)
        images = to_device(training.images[own], ranks.device)
        images = recipe.augment(images, indices, recipe.view(epoch))  # (n, C, H, W) uint8
        logits = features = None
        if teaching is not None:
            if needs_logits or needs_features:
                logits, features = teaching.answers(images, own, place=place)
            elif takes_features:  # any will do, and these cost no pass of the teacher
                features = torch.zeros(len(images), teaching.feature_dim, device=ranks.device)
        place += len(micro)
        pixels = recipe.student_pixels
        yield MicroBatch(
            images=normalize(images, mean=pixels.mean, std=pixels.std).contiguous(
                memory_format=recipe.memory_format
            ),
            labels=to_device(training.labels[own], ranks.device),
            teacher_logits=logits if needs_logits else None,
            teacher_features=features if takes_features else None,
            counts=counts,
        )

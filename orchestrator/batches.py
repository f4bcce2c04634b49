"""How to train, in plain values, and the batches that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from dcd_core import HintedOutput, MicroBatch, normalize, sample_order, shares
from orchestrator.evaluation import Images, PixelStatistics
from orchestrator.reporter import Ranks
from orchestrator.streaming.stream import Batch, Stream
from orchestrator.teaching import Answers, Teaching


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
    cuda_graphs: bool = False
    """Whether steps run as CUDA graphs, for one rank on a GPU that needs no scaler."""
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


class Selection(NamedTuple):
    """What a step takes of a micro-batch: this rank's rows, as they are kept."""

    images: Tensor  # (n, C, H, W) uint8
    labels: Tensor  # (n,) int64
    indices: Tensor  # (n,) int64, in the source
    answers: Answers | None
    """The teacher's, where they are at hand."""
    counts: Sequence[int]
    """Rows on each rank."""
    positions: Tensor | None = None
    """Of all ranks' images in the split, (N,) int64, where a method remembers them."""


class Needs(NamedTuple):
    """What a step asks of the teacher."""

    takes_features: bool
    """Whether the distiller has heads, which do not run without features."""
    features: bool
    """Whether the loss depends on them."""
    logits: bool
    """Whether the loss depends on the teacher's logits."""
    method: bool = False
    """Whether the loss has the term of a method that learns from all that the teacher says."""
    positions: bool = False
    """Whether that method remembers each image."""

    @property
    def answers(self) -> bool:
        """Whether the loss depends on anything that the teacher says."""
        return self.features or self.logits or self.method


def optimizer_steps(
    training: Images | Stream,
    teaching: Teaching | None,
    *,
    epoch: int,
    recipe: Recipe,
    ranks: Ranks,
    needs: Needs,
) -> Iterator[list[Selection]]:
    """What each optimizer step of an epoch takes: one selection for each micro-batch.

    Args:
        training: images that are held, whose order is the same for any number of ranks, or streamed
            ones.
        teaching: where the teacher's answers come from.
        epoch: counted from 1.
        recipe: how to train.
        ranks: the processes that train together.
        needs: what a step asks of the teacher.
    """
    if isinstance(training, Images):
        order = sample_order(recipe.data_seed, epoch, training.indices)  # (M,)
        for step, batch in enumerate(order.split(recipe.batch_size)):
            yield select(
                batch,
                teaching,
                place=step * recipe.batch_size,
                training=training,
                recipe=recipe,
                ranks=ranks,
                needs=needs,
            )
        return
    batches = training.epoch(
        epoch, seed=recipe.data_seed, batch_size=recipe.batch_size // recipe.accumulate
    )
    while micro_batches := list(islice(batches, recipe.accumulate)):
        yield [_streamed(batch, ranks.device) for batch in micro_batches]


def _streamed(batch: Batch, device: torch.device) -> Selection:
    images, labels, indices = (to_device(part, device) for part in batch[:3])
    return Selection(images, labels, indices, None, batch.counts)


def select(
    batch: Tensor,
    teaching: Teaching | None,
    *,
    place: int,
    training: Images,
    recipe: Recipe,
    ranks: Ranks,
    needs: Needs,
) -> list[Selection]:
    """This rank's rows of each micro-batch of one optimizer step, on the device.

    Args:
        batch: positions in the split, over all ranks, (B,).
        teaching: where the teacher's answers come from.
        place: of the batch's first image in the order of the epoch.
    """
    found = []
    for micro in batch.split(recipe.batch_size // recipe.accumulate):
        counts = shares(len(micro), ranks.size)
        first = sum(counts[: ranks.rank])
        own = micro[first : first + counts[ranks.rank]]  # (n,)
        answers = None
        if teaching is not None and needs.answers:
            answers = teaching.recall(own, place=place)
        place += len(micro)
        images, labels, indices = (to_device(part[own], ranks.device) for part in training)
        positions = to_device(micro, ranks.device) if needs.positions else None
        found.append(Selection(images, labels, indices, answers, counts, positions))
    return found


def prepare(
    selection: Selection,
    teaching: Teaching | None,
    *,
    view: int,
    recipe: Recipe,
    needs: Needs,
    epoch: int = 1,
) -> MicroBatch:
    """Augment a selection's images and have the teacher answer.

    Nothing here depends on anything but the selection's tensors that changes within an epoch.

    Args:
        selection: of one micro-batch.
        teaching: where the answers come from that are not at hand.
        view: which augmentation.
        epoch: its number, which a method may look at.
    """
    images = recipe.augment(selection.images, selection.indices, view)  # (n, C, H, W) uint8
    logits = features = teacher = None
    if teaching is not None:
        if needs.answers:
            teacher = HintedOutput(*(selection.answers or teaching.run(images)))
            logits, features = teacher.logits, teacher.features
        elif needs.takes_features:  # any will do, and these cost no pass of the teacher
            features = torch.zeros(len(images), teaching.feature_dim, device=images.device)
    pixels = recipe.student_pixels
    return MicroBatch(
        images=normalize(images, mean=pixels.mean, std=pixels.std).contiguous(
            memory_format=recipe.memory_format
        ),
        labels=selection.labels,
        teacher_logits=logits if needs.logits else None,
        teacher_features=features if needs.takes_features else None,
        counts=selection.counts,
        teacher=teacher if needs.method else None,
        positions=selection.positions,
        epoch=epoch,
    )

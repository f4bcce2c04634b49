"""One training step, and the epoch's means of its losses, without waiting for the device.

Shape letters: n images on this rank, N on all ranks, C channels, H x W pixels, K classes,
D feature dimensions.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcd_core.distiller import Distiller
from dcd_core.features import HintedOutput
from dcd_core.objective import Losses, Objective
from dcd_core.objectives.method import Lesson, Rows

ModelT = TypeVar("ModelT", bound=nn.Module)


class MicroBatch(NamedTuple):
    """This rank's rows of the images that one DCD term compares."""

    images: Tensor  # (n, C, H, W) float
    labels: Tensor  # (n,) int64
    teacher_logits: Tensor | None = None  # (n, K)
    teacher_features: Tensor | None = None  # (n, D)
    counts: Sequence[int] | None = None
    """Rows on each rank; None when this process is alone."""
    teacher: HintedOutput | None = None
    """What the teacher says, where another method than DCD learns from it."""
    positions: Tensor | None = None
    """Of all ranks' images in the training split, (N,) int64, for methods that remember them."""
    epoch: int = 1
    """Number of the epoch, counted from 1."""

    @property
    def num_images(self) -> int:
        """N."""
        return self.images.shape[0] if self.counts is None else sum(self.counts)


class EpochMeans(NamedTuple):
    """What a ``Meter`` found."""

    means: dict[str, float]
    """Mean over images of "total" and of each term."""
    first_bad: dict[str, int]
    """For "total" and each term that was not finite: the first step where it was not."""


class Meter:
    """Sums losses on the device, and remembers the first step at which each was not finite.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._names: tuple[str, ...] = ()
        self._sums = self._first_bad = self._num_images = torch.empty(0)

    def add(self, losses: Losses, *, num_images: int, step: int | Tensor) -> None:
        """Count the losses of one micro-batch.

        Args:
            losses: this rank's part.
            num_images: images of the micro-batch on all ranks, N.
            step: number of the step, which ``first_bad`` reports; on a device, where a CUDA graph
                is to see it change, () float64.
        """
        named = {"total": losses.total, **losses.terms}
        if not self._names:
            self._names = tuple(named)
            self._sums = torch.zeros(len(named), dtype=torch.float64, device=self._device)
            self._first_bad = torch.full_like(self._sums, math.inf)
            self._num_images = torch.zeros((), dtype=torch.float64, device=self._device)
        if tuple(named) != self._names:
            raise ValueError(f"the terms changed from {self._names} to {tuple(named)}")
        values = torch.stack([value.detach().double() for value in named.values()])  # (terms,)
        self._sums += values * num_images
        never = torch.full_like(values, math.inf)
        # Not masked_fill, which waits for a tensor's value.
        bad_step = torch.where(values.isfinite(), never, step)
        # In place, all of it: a CUDA graph adds to the memory that it was captured with.
        torch.minimum(self._first_bad, bad_step, out=self._first_bad)
        self._num_images += num_images

    def result(self, group: dist.ProcessGroup | None = None) -> EpochMeans:
        """The means over all images so far. With a process group, every rank must call it.

        Args:
            group: the ranks that shared the images; by default all.
        """
        if not self._names:
            return EpochMeans({}, {})
        # A rank's loss is W times its share, so the mean over ranks is the mean over images.
        own = torch.stack([self._sums / self._num_images, self._first_bad])  # (2, terms)
        ranks = [own]
        if dist.is_available() and dist.is_initialized():
            ranks = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
            dist.all_gather(ranks, own, group=group)
        gathered = torch.stack(ranks)  # (ranks, 2, terms)
        means = gathered[:, 0].mean(0).tolist()
        first_bad = gathered[:, 1].amin(0).tolist()
        return EpochMeans(
            means=dict(zip(self._names, means, strict=True)),
            first_bad={
                name: int(step)
                for name, step in zip(self._names, first_bad, strict=True)
                if step < math.inf
            },
        )


def train_step(
    distiller: nn.Module,
    micro_batches: Sequence[MicroBatch],
    *,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    meter: Meter,
    step: int | Tensor,
    scaler: torch.amp.GradScaler | None = None,
    precision: torch.dtype | None = None,
    rank: int = 0,
    group: dist.ProcessGroup | None = None,
    max_norm: float | None = None,
) -> None:
    """One optimizer step over one or more micro-batches, each weighted by its share of images.

    Nothing here waits for the device, apart from a scaler, which looks for overflows.

    Args:
        distiller: a ``Distiller``, perhaps inside DDP or torch.compile.
        micro_batches: this rank's rows; gradients are reduced over ranks after the last one.
        objective: the loss.
        optimizer: over the distiller's ``parameter_groups``.
        meter: gets the losses.
        step: number of the step, for the meter.
        scaler: keeps float16 gradients from underflowing.
        precision: float16 or bfloat16 runs the networks under autocast; None or another does not.
        rank: this rank's place in the micro-batches' ``counts``.
        group: the ranks; by default all.
        max_norm: clip the norm of the whole gradient to this.
    """
    optimizer.zero_grad(set_to_none=True)
    num_images = sum(batch.num_images for batch in micro_batches)
    for position, batch in enumerate(micro_batches, start=1):
        with _gradients_stay_local(distiller, when=position < len(micro_batches)):
            with torch.autocast(
                batch.images.device.type,
                dtype=precision,
                enabled=precision in (torch.float16, torch.bfloat16),
            ):
                lesson = _lesson(batch, rank=rank, group=group) if objective.uses_method else None
                output = distiller(batch.images, batch.teacher_features, lesson)
            losses = objective(
                output,
                labels=batch.labels,
                teacher_logits=batch.teacher_logits,
                counts=batch.counts,
                rank=rank,
                group=group,
            )
            loss = losses.total * (batch.num_images / num_images)
            (loss if scaler is None else scaler.scale(loss)).backward()
        meter.add(losses, num_images=batch.num_images, step=step)
    _update(distiller, optimizer, scaler=scaler, max_norm=max_norm)
    learned = _unwrapped(distiller)
    assert isinstance(learned, Distiller)
    learned.limit_temperature_()


def _lesson(batch: MicroBatch, *, rank: int, group: dist.ProcessGroup | None) -> Lesson:
    if batch.teacher is None:
        raise ValueError("teacher is needed when method_weight is above 0")
    counts = batch.counts if batch.counts is not None else [batch.num_images]
    rows = Rows(counts, rank, group)
    return Lesson(batch.teacher, batch.labels, rows, batch.positions, batch.epoch)


def freeze_teacher(model: ModelT) -> ModelT:
    """Put a teacher in eval mode without gradients, and return it."""
    model.eval()
    model.requires_grad_(False)
    return model


def _update(
    distiller: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler | None,
    max_norm: float | None,
) -> None:
    if max_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(distiller.parameters(), max_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def _gradients_stay_local(
    distiller: nn.Module, *, when: bool
) -> contextlib.AbstractContextManager[None]:
    module = _without_compile(distiller)
    if when and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def _unwrapped(distiller: nn.Module) -> nn.Module:
    module = _without_compile(distiller)
    if isinstance(module, DistributedDataParallel):
        module = module.module
    return _without_compile(module)


def _without_compile(module: nn.Module) -> nn.Module:
    """The module itself where torch.compile wrapped it."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner

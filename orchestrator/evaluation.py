"""Scoring a classifier on a split that the ranks share, in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from dcd_core import FeatureModel, FrozenTeacher, center_crop, normalize, shares
from orchestrator.data import ImageSet
from orchestrator.errors import UserError
from orchestrator.reporter import Ranks

_EVAL_BATCH = 256


class PixelStatistics(NamedTuple):
    """Normalisation of one network's input."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


_RESIDENT_SHARE = 0.25
"""A split stays on a GPU when it takes no more than this share of the memory that is free there."""


class Scored(Protocol):
    """A split that the ranks share."""

    def batches(self, ranks: Ranks, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's images (n, C, H, W) uint8 and labels (n,), n from 1 to `batch_size`."""
        ...


class Images(NamedTuple):
    """One split as tensors, in host memory or on the device that computes."""

    images: Tensor  # (M, C, H, W) uint8
    labels: Tensor  # (M,) int64
    indices: Tensor  # (M,) int64, in the source

    @classmethod
    def of(cls, split: ImageSet) -> Images:
        """The same memory as the numpy arrays, which may be read-only."""
        return cls(*(from_dlpack(a) for a in (split.images, split.labels, split.indices)))

    def resident(self, device: torch.device) -> Images:
        """The same on the device, where that is a GPU with room for it: no step copies then."""
        if device.type != "cuda":
            return self
        free, _ = torch.cuda.mem_get_info(device)
        if sum(tensor.nbytes for tensor in self) > _RESIDENT_SHARE * free:
            return self
        return Images(*(tensor.to(device) for tensor in self))

    @property
    def num_images(self) -> int:
        """M."""
        return len(self.labels)

    @property
    def examples(self) -> Tensor:
        """Two images, (2, C, H, W) uint8."""
        return self.images[:2]

    def metrics(self) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    def batches(self, ranks: Ranks, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share, in order."""
        counts = shares(self.num_images, ranks.size)
        first = sum(counts[: ranks.rank])
        own = slice(first, first + counts[ranks.rank])
        if counts[ranks.rank]:
            yield from zip(
                self.images[own].split(batch_size), self.labels[own].split(batch_size), strict=True
            )


class Scores(NamedTuple):
    """How well a classifier does on a split, in percent."""

    top1: float
    top5: float | None
    """None with five classes or fewer."""
    loss: float
    """Mean cross entropy in nats."""
    class_top1: tuple[float | None, ...]
    """(K,) top-1 of the images of each class; None for a class without images."""


@torch.no_grad()
def evaluate(
    model: FeatureModel,
    split: Scored,
    *,
    pixels: PixelStatistics,
    ranks: Ranks,
    crop_size: int | None,
) -> Scores:
    """Score a classifier in fp32 on a split that the ranks share; every rank gets the result.

    Args:
        model: the classifier.
        split: K classes, as the classifier.
        pixels: what it sees.
        ranks: the processes that share the split.
        crop_size: side of the square from the centre that it sees; None for whole images.

    Raises:
        UserError: the split's images are streamed, and cannot be read.
    """
    was_training = model.training
    model.eval()
    num_classes = model.num_classes
    sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    by_class = torch.zeros(2, num_classes, dtype=torch.float64, device=ranks.device)  # hits, images
    for images, labels in split.batches(ranks, _EVAL_BATCH):
        labels = labels.to(ranks.device, non_blocking=True)
        inputs = _inputs(images.to(ranks.device), pixels, crop_size)
        logits = model(inputs).logits.float()  # (B, K)
        top = logits.topk(min(5, num_classes), dim=1).indices == labels[:, None]  # (B, <=5)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([top[:, 0].sum(), top.sum(), loss.double()])
        hits = torch.stack([top[:, 0].double(), torch.ones_like(labels, dtype=torch.float64)])
        by_class.index_add_(1, labels, hits)
    totals = torch.cat([sums, by_class.flatten()])
    if ranks.size > 1:
        dist.all_reduce(totals)
    model.train(was_training)
    hit, seen = totals[3:].view(2, num_classes).tolist()
    if sum(seen) == 0:
        raise UserError("none of the images that are to be scored could be decoded")
    top1, top5, loss_sum = (totals[:3] / sum(seen)).tolist()
    return Scores(
        100 * top1,
        100 * top5 if num_classes > 5 else None,
        loss_sum,
        tuple(100 * h / n if n else None for h, n in zip(hit, seen, strict=True)),
    )


@torch.no_grad()
def agreement(
    model: FeatureModel,
    other: FrozenTeacher,
    split: Scored,
    *,
    pixels: PixelStatistics,
    ranks: Ranks,
    crop_size: int | None,
) -> float:
    """Percentage of a split's images for which two classifiers in eval mode answer the same."""
    same = torch.zeros(2, dtype=torch.int64, device=ranks.device)
    for images, _ in split.batches(ranks, _EVAL_BATCH):
        inputs = _inputs(images.to(ranks.device), pixels, crop_size)
        answers, others = (network(inputs).logits.argmax(1) for network in (model, other))
        same[0] += (answers == others).sum()
        same[1] += len(images)
    if ranks.size > 1:
        dist.all_reduce(same)
    return 100 * same[0].item() / same[1].item()


def score_metrics(prefix: str, scores: Scores) -> dict[str, float]:
    """Scores under their metric names."""
    metrics = {f"{prefix}/top1": scores.top1, f"{prefix}/loss": scores.loss}
    if scores.top5 is not None:
        metrics[f"{prefix}/top5"] = scores.top5
    return metrics


def as_evaluated(images: Tensor, crop_size: int | None) -> Tensor:
    """The part of images uint8 (B, C, H, W) that networks are evaluated on."""
    return images if crop_size is None else center_crop(images, size=crop_size)


def _inputs(images: Tensor, pixels: PixelStatistics, crop_size: int | None) -> Tensor:
    return normalize(as_evaluated(images, crop_size), mean=pixels.mean, std=pixels.std)

"""A linear classifier on features that are kept: how well they tell classes apart.

The protocol is that of Tian et al., Contrastive Representation Distillation (ICLR 2020), for the
transfer of representations: SGD with momentum 0.9 and no weight decay, and a learning rate that
falls to a tenth at a quarter, half and three quarters of the run.

Shape letters: M images, D feature dimensions, K classes.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcd_core import sample_order
from orchestrator.schedule import lr_factor
from orchestrator.spec import ScheduleSpec

MOMENTUM = 0.9
SCHEDULE = ScheduleSpec(milestones=(0.25, 0.5, 0.75), gamma=0.1)


class ProbeSettings(NamedTuple):
    """How probes are trained."""

    epochs: int = 120
    lr: float = 0.05
    batch_size: int = 64


class Labelled(NamedTuple):
    """A split's features."""

    features: Tensor  # (M, D) float32, on the device that computes
    labels: Tensor  # (M,) int64, there


class Probe(NamedTuple):
    """A trained probe."""

    best: nn.Linear
    """D -> K, of the epoch with the highest validation top-1, and of equal ones the lowest loss."""
    last: nn.Linear
    """Of the last epoch."""
    best_epoch: int
    """Counted from 1."""
    history: dict[int, dict[str, float]]
    """``train/loss``, ``val/loss`` and ``val/top1`` (percent) by epoch."""


def train_probe(
    train: Labelled, val: Labelled, *, num_classes: int, settings: ProbeSettings, seed: int
) -> Probe:
    """Train a probe; the same seed gives the same one.

    Args:
        train: what it learns from.
        val: chooses the epoch.
        num_classes: K.
        settings: of the training.
        seed: of its start and of the order of the images.
    """
    device = train.features.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = nn.Linear(train.features.shape[1], num_classes)
    linear.to(device)
    optimizer = torch.optim.SGD(linear.parameters(), lr=settings.lr, momentum=MOMENTUM)
    positions = torch.arange(len(train.labels))
    history: dict[int, dict[str, float]] = {}
    best, best_epoch, best_score = linear, 0, (-1.0, 0.0)
    for epoch in range(1, settings.epochs + 1):
        factor = lr_factor(SCHEDULE, epoch=epoch - 1, epochs=settings.epochs)
        for group in optimizer.param_groups:
            group["lr"] = factor * settings.lr
        loss_sum = torch.zeros((), device=device)
        for rows in sample_order(seed, epoch, positions).to(device).split(settings.batch_size):
            logits = linear(train.features[rows])
            loss = nn.functional.cross_entropy(logits, train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(rows)
        top1, val_loss = top_k(linear, val, k=1), _mean_loss(linear, val)
        train_loss = loss_sum.item() / len(positions)
        history[epoch] = {"train/loss": train_loss, "val/loss": val_loss, "val/top1": top1}
        # Small validation splits have many equal accuracies, the first of them in early epochs.
        if (top1, -val_loss) > best_score:
            best, best_epoch, best_score = copy.deepcopy(linear), epoch, (top1, -val_loss)
    return Probe(best, linear, best_epoch, history)


@torch.no_grad()
def top_k(linear: nn.Linear, split: Labelled, *, k: int) -> float:
    """Percentage of a split's images whose class is among the k first."""
    ranked = linear(split.features).topk(k, dim=1).indices  # (M, k)
    hits = (ranked == split.labels[:, None]).any(1)  # (M,)
    return 100 * float(hits.sum()) / len(hits)


@torch.no_grad()
def _mean_loss(linear: nn.Linear, split: Labelled) -> float:
    return float(nn.functional.cross_entropy(linear(split.features), split.labels))

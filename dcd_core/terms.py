"""The terms of the DCD objective, one value per anchor, each a plain function of tensors.

All are computed in float32 at least, whatever autocast says.

Shape letters: n anchors, N candidates, K classes, P projection dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dcd_core._precision import full_precision


@full_precision
def similarity_logits(
    anchor: Tensor, others: Tensor, *, log_temperature: Tensor, bias: Tensor
) -> Tensor:
    """Cosine similarities divided by T, plus b.

    Args:
        anchor: unit vectors, (n, P).
        others: unit vectors, (N, P).
        log_temperature: log T, a scalar.
        bias: b, a scalar.

    Returns:
        (n, N), at least float32.
    """
    return anchor @ others.T * (-log_temperature).exp() + bias


@full_precision
def softmax_contrast(logits: Tensor, positive: Tensor, *, excluded: Tensor | None = None) -> Tensor:
    """Cross entropy of finding the positive among all candidates.

    Args:
        logits: (n, N).
        positive: column of each anchor's positive, (n,) int64.
        excluded: pairs that are no negatives, (n, N) bool; never the positive.

    Returns:
        (n,); exactly 0 for an anchor without negatives.
    """
    if excluded is not None:
        # Finite, as -inf would turn into NaN wherever it meets itself or a zero. Half of the lowest
        # number leaves room for the subtraction of the maximum.
        logits = logits.masked_fill(excluded, torch.finfo(logits.dtype).min / 2)
    return F.cross_entropy(logits, positive, reduction="none")


@full_precision
def sigmoid_contrast(logits: Tensor, positive: Tensor, *, excluded: Tensor | None = None) -> Tensor:
    """One binary cross entropy per pair, summed, as in SigLIP (Zhai et al., arXiv 2303.15343).

    Args:
        logits: (n, N).
        positive: column of each anchor's positive, (n,) int64.
        excluded: pairs that are no negatives, (n, N) bool; never the positive.

    Returns:
        (n,); exactly 0 for an anchor without negatives.
    """
    is_positive = torch.zeros_like(logits, dtype=torch.bool)
    is_positive = is_positive.scatter(1, positive[:, None], True)
    pairs = F.softplus(torch.where(is_positive, -logits, logits))  # (n, N)
    is_negative = ~is_positive if excluded is None else ~(is_positive | excluded)
    kept = is_negative | (is_positive & is_negative.any(dim=1, keepdim=True))
    return pairs.masked_fill(~kept, 0.0).sum(1)


@full_precision
def consistency(row_logits: Tensor, column_logits: Tensor) -> Tensor:
    """KL(softmax(column) || softmax(row)), with gradient to both.

    Args:
        row_logits: how student i sees all teachers, (n, N).
        column_logits: how teacher i sees all students, (n, N).

    Returns:
        (n,) in nats.
    """
    log_row, log_column = row_logits.log_softmax(1), column_logits.log_softmax(1)
    return (log_column.exp() * (log_column - log_row)).sum(1)


@full_precision
def kd_divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of class probabilities at a temperature (Hinton et al. 2015).

    The factor T^2 keeps the size of the gradient when the temperature changes.

    Args:
        student_logits: (n, K).
        teacher_logits: (n, K).
        temperature: T, above 0.

    Returns:
        (n,) in nats.
    """
    log_student = (student_logits / temperature).log_softmax(1)
    log_teacher = (teacher_logits / temperature).log_softmax(1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(1)


@full_precision
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits (n, K) with classes (n,): (n,) in nats."""
    return F.cross_entropy(logits, labels, reduction="none")


def same_class_mask(labels: Tensor, all_labels: Tensor, positive: Tensor) -> Tensor:
    """Which candidates share the anchor's class without being its positive.

    Args:
        labels: classes of the anchors, (n,).
        all_labels: classes of the candidates, (N,).
        positive: column of each anchor's positive, (n,) int64.

    Returns:
        (n, N) bool.
    """
    same_class = labels[:, None] == all_labels[None, :]
    return same_class.scatter(1, positive[:, None], False)


def default_init_bias(num_images: int) -> float:
    """The log-odds of a positive among all pairs of N images, -ln(N - 1): b for the sigmoid form.

    Raises:
        ValueError: N is below 2, where there are no negatives.
    """
    if num_images < 2:
        raise ValueError(f"the initial bias -ln(N - 1) needs N >= 2 images, not {num_images}")
    return math.log(1 / (num_images - 1))

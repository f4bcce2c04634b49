"""DKD: Decoupled Knowledge Distillation (Zhao et al., CVPR 2022, arXiv 2203.08679).

With class probabilities p at temperature T, b = (p_y, 1 - p_y) of the true class y against all
others, and q the probabilities among those others:

    tckd = KL(b^t || b^s),   nckd = KL(q^t || q^s)
    dkd  = T^2 (target_weight tckd + others_weight nckd) min(epoch / warmup_epochs, 1)

Zero where the probabilities are the teacher's. Hinton's KD is T^2 (tckd + (1 - p^t_y) nckd), so
that ``dkd+kd`` only adds kd_weight to the one and kd_weight (1 - p^t_y) to the other: DKD takes the
place of KD, and the sum is there for completeness.

Defaults: weight 1, target_weight 1 (the paper's alpha), others_weight 8 (its beta for resnet32x4
and resnet8x4; it has 1 to 8 for other pairs, more for better teachers), T 4, warm-up of 20 epochs.

Over ranks: images do not meet; each rank does its own.

Shape letters: n images, K classes.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dcd_core.features import HintedOutput
from dcd_core.objectives.method import Lesson, Method, Sizes, check_number


class DKD(Method):
    """The true class and the others are learned apart, each with its own weight.

    Args:
        sizes: of both networks.
        target_weight: of the true class against the others.
        others_weight: of the probabilities among the others.
        temperature: T.
        warmup_epochs: over which the term grows to its full size; 0 for none.
    """

    weight: ClassVar[float] = 1.0
    uses_logits: ClassVar[bool] = True

    def __init__(
        self,
        sizes: Sizes,
        *,
        target_weight: float = 1.0,
        others_weight: float = 8.0,
        temperature: float = 4.0,
        warmup_epochs: float = 20.0,
    ) -> None:
        super().__init__(sizes)
        self.target_weight = check_number("target_weight", target_weight, at_least=0)
        self.others_weight = check_number("others_weight", others_weight, at_least=0)
        self.temperature = check_number("temperature", temperature, above=0)
        self.warmup_epochs = check_number("warmup_epochs", warmup_epochs, at_least=0)
        if target_weight == others_weight == 0:
            raise ValueError("target_weight and others_weight are both 0: nothing to compare")

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equation, (n,)."""
        own = _decouple(student.logits / self.temperature, lesson.labels)
        wanted = _decouple(lesson.teacher.logits / self.temperature, lesson.labels)
        target, others = (
            (part.exp() * (part - other)).sum(1) for part, other in zip(wanted, own, strict=True)
        )
        scale = self.temperature**2
        if lesson.epoch < self.warmup_epochs:
            scale *= lesson.epoch / self.warmup_epochs
        return scale * (self.target_weight * target + self.others_weight * others)


class _Decoupled(NamedTuple):
    """Logarithms of probabilities."""

    target: Tensor  # (n, 2): the true class, all others
    others: Tensor  # (n, K): among the others; very low for the true class


def _decouple(logits: Tensor, labels: Tensor) -> _Decoupled:
    total = logits.logsumexp(1)  # (n,)
    # Finite, because the difference of two infinities is not a number.
    lowest = torch.finfo(logits.dtype).min / 2
    others = logits.scatter(1, labels[:, None], lowest)  # (n, K)
    true_class = logits.gather(1, labels[:, None]).squeeze(1) - total  # (n,)
    target = torch.stack([true_class, others.logsumexp(1) - total], dim=1)
    return _Decoupled(target, others.log_softmax(1))

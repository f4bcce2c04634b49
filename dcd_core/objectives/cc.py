"""CC: Correlation Congruence for Knowledge Distillation (Peng et al., ICCV 2019, arXiv 1904.01802).

With unit penultimate features x_i and the Gaussian kernel exp(-gamma |x_i - x_j|^2) by its Taylor
series up to a power of their product:

    C_ij = sum_{p=0}^{order} exp(-2 gamma) (2 gamma)^p / p! <x_i, x_j>^p
    cc   = 1/N^2 sum_ij (C^s_ij - C^t_ij)^2

Zero where the cosines between images are the same in both networks.

Defaults: gamma 0.4 and order 2, the paper's. Weight 100, of public code for CIFAR with this mean.
(The CRD protocol's code has 0.02 for another form of the method, on the differences of
embeddings.) The paper trains with KD too: ``cc+kd``.

Over ranks: correlations within the global batch; each rank does its n x N rows.

Shape letters: n images on this rank, N on all ranks, D feature dimensions.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from dcd_core.features import HintedOutput
from dcd_core.objectives.layers import unit_rows
from dcd_core.objectives.method import Lesson, Method, Rows, Sizes, check_count, check_number

_LEAST = 1e-6
"""Of the share of the kernel at distance 0 that the series has to reach."""


class CC(Method):
    """The student's images are correlated as the teacher's.

    Args:
        sizes: of both networks.
        gamma: of the Gaussian kernel.
        order: highest power of its series.
    """

    weight: ClassVar[float] = 100.0

    def __init__(self, sizes: Sizes, *, gamma: float = 0.4, order: int = 2) -> None:
        super().__init__(sizes)
        check_number("gamma", gamma, above=0)
        log_double = math.log(2 * gamma)
        # exp(-2 gamma) (2 gamma)^p / p!, by logarithms: each factor alone overflows or vanishes.
        self.coefficients = [
            math.exp(power * log_double - 2 * gamma - math.lgamma(power + 1))
            for power in range(check_count("order", order) + 1)
        ]
        if sum(self.coefficients) < _LEAST:
            raise ValueError(
                f"gamma {gamma:g} is too large for order {order}: what its series leaves of the "
                f"kernel is below {_LEAST:g}: lower gamma, or raise order above {2 * gamma:.0f}"
            )

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equation, (n,)."""
        difference = self._correlations(student.features, lesson.rows) - self._correlations(
            lesson.teacher.features, lesson.rows
        )
        return difference.square().mean(1)

    def _correlations(self, features: Tensor, rows: Rows) -> Tensor:
        """(n, D) to (n, N)."""
        own = unit_rows(features)
        cosine = own @ rows.gather(own).T  # (n, N)
        terms = [factor * cosine**power for power, factor in enumerate(self.coefficients)]
        return torch.stack(terms, -1).sum(-1)  # (n, N)

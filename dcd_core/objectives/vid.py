"""VID: Variational Information Distillation (Ahn et al., CVPR 2019, arXiv 1904.05835).

A learned network mu predicts a layer of the teacher from one of the student, with a learned
variance for each channel, sigma_c^2 = softplus(a_c) + 1e-5:

    vid = sum_layers mean_i mean_chw 1/2 ((A^t_chw - mu_chw(A^s))^2 / sigma_c^2 + log sigma_c^2)

which is the negative log-likelihood of a Gaussian, but for a constant. Its minimum over the
variance is where sigma_c^2 is the mean squared error of channel c.

mu is three 1x1 convolutions without bias and ReLU between them, as wide as the teacher's layer. The
map with more pixels is averaged to the size of the other.

Defaults: weight 1 and init_variance 5, of the CRD protocol, at the ends of all stages.

Over ranks: images do not meet; each rank does its own.

Shape letters: n images, C channels, h x w pixels.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcd_core.features import HintedOutput
from dcd_core.objectives.layers import pooled_to_smaller
from dcd_core.objectives.method import Lesson, Method, Sizes, check_number

_SMALLEST = 1e-5
"""Of a variance: it is a divisor, and could fall without end where the prediction is exact."""


class VID(Method):
    """The student's layers tell as much as they can about the teacher's.

    Args:
        sizes: of both networks.
        init_variance: where the variances start.
    """

    weight: ClassVar[float] = 1.0
    hints: ClassVar[Literal["none", "stages", "middle", "last"]] = "stages"

    def __init__(self, sizes: Sizes, *, init_variance: float = 5.0) -> None:
        super().__init__(sizes)
        check_number("init_variance", init_variance, above=_SMALLEST)
        pairs = zip(sizes.student.hints, sizes.teacher.hints, strict=True)
        self.predictors = nn.ModuleList(_predictor(own[0], hint[0]) for own, hint in pairs)
        # softplus of it is init_variance - _SMALLEST
        wanted = init_variance - _SMALLEST
        start = wanted + math.log(-math.expm1(-wanted))  # log(exp(x) - 1), which overflows
        self.raw_variances = nn.ParameterList(
            torch.full((hint[0],), start) for hint in sizes.teacher.hints
        )

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equation, (n,)."""
        values = student.features.new_zeros(len(student.features))
        for predictor, raw, own, hint in zip(
            self.predictors, self.raw_variances, student.hints, lesson.teacher.hints, strict=True
        ):
            known, wanted = pooled_to_smaller(own, hint)
            variance = (F.softplus(raw) + _SMALLEST)[:, None, None]  # (C, 1, 1)
            error = (wanted - predictor(known)).square()  # (n, C, h, w)
            values = values + (error / variance + variance.log()).mean((1, 2, 3)) / 2
        return values


def _predictor(num_inputs: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(num_outputs, num_outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(num_outputs, num_outputs, 1, bias=False),
    )

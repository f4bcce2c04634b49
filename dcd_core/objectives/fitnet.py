"""FitNet: Hints for Thin Deep Nets (Romero et al., ICLR 2015, arXiv 1412.6550).

A learned regressor r maps a layer of the student to the channels of one of the teacher, the hint:

    fitnet = mean_i mean_chw (r(A^s) - A^t)^2

Zero where the hint is a function r of the student's layer. r is a 1x1 convolution with bias. Where
sizes differ, the map with more pixels is averaged to the size of the other. (The paper's r reduces
the student's map by an unpadded convolution and has the hint's activation; ours is linear, so that
it can give whatever values the hint has.)

Default: weight 100, of the CRD protocol, which trains all at once and not the hint first; at the
end of the middle stage.

Over ranks: images do not meet; each rank does its own.

Shape letters: n images, C channels, h x w pixels.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from dcd_core.features import HintedOutput
from dcd_core.objectives.layers import pooled_to_smaller
from dcd_core.objectives.method import Lesson, Method, Sizes


class FitNet(Method):
    """The student's middle layer predicts the teacher's.

    Args:
        sizes: of both networks.
    """

    weight: ClassVar[float] = 100.0
    hints: ClassVar[Literal["none", "stages", "middle", "last"]] = "middle"

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        pairs = zip(sizes.student.hints, sizes.teacher.hints, strict=True)
        self.regressors = nn.ModuleList(nn.Conv2d(own[0], hint[0], 1) for own, hint in pairs)

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equation, summed over the layers, (n,)."""
        values = student.features.new_zeros(len(student.features))
        layers = zip(self.regressors, student.hints, lesson.teacher.hints, strict=True)
        for regressor, own, hint in layers:
            guided, wanted = pooled_to_smaller(own, hint)
            values = values + (regressor(guided) - wanted).square().mean((1, 2, 3))
        return values

"""AT: Attention Transfer (Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928).

With feature maps A of a layer and the attention map Q_hw = mean_c A_chw^2, flattened:

    at = sum_layers mean_i mean_hw (Q^s / |Q^s| - Q^t / |Q^t|)^2

Zero where both networks look at the same places, and so for a layer of one pixel. The map with more
pixels is averaged to the size of the other before, so widths and sizes may differ.

Default: weight 1000 for this mean, the paper's beta, at the ends of all stages. (The paper's
equation has half of it and the norm; its code this mean of squares.)

Over ranks: images do not meet; each rank does its own.

Shape letters: n images, C channels, h x w pixels.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from dcd_core.features import HintedOutput
from dcd_core.objectives.layers import pooled_to_smaller, unit_rows
from dcd_core.objectives.method import Lesson, Method

_SHORTEST = 1e-12
"""Squares of small activations are smaller still, and are to be compared all the same."""


class AT(Method):
    """The student's layers attend to where the teacher's do.

    Args:
        sizes: of both networks.
    """

    weight: ClassVar[float] = 1000.0
    hints: ClassVar[Literal["none", "stages", "middle", "last"]] = "stages"
    compares_pixels: ClassVar[bool] = True

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equation, (n,)."""
        values = student.features.new_zeros(len(student.features))
        for own, wanted in zip(student.hints, lesson.teacher.hints, strict=True):
            maps = [_attention(part) for part in pooled_to_smaller(own, wanted)]
            values = values + (maps[0] - maps[1]).square().mean(1)
        return values


def _attention(maps: Tensor) -> Tensor:
    """Maps (n, C, h, w) to unit attention maps (n, h w)."""
    return unit_rows(maps.square().mean(1).flatten(1), shortest=_SHORTEST)

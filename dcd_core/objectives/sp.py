"""SP: Similarity-Preserving Knowledge Distillation (Tung & Mori, ICCV 2019, arXiv 1907.09682).

With the feature maps of a layer flattened to rows x_i:

    G_ij = <x_i, x_j>,   G'_i = G_i / |G_i|
    sp   = 1/N^2 sum_ij (G'^s_ij - G'^t_ij)^2

Zero where the rows of similarities have the same directions.

Default: weight 3000 (the paper's gamma), at the end of the last stage. Sizes may differ.

Over ranks: similarities within the global batch. Each rank makes its n x N rows of them from the
gathered feature maps.

Shape letters: n images on this rank, N on all ranks, C channels, h x w pixels.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from dcd_core.features import HintedOutput
from dcd_core.objectives.layers import unit_rows
from dcd_core.objectives.method import Lesson, Method, Rows

_SHORTEST = 1e-12
"""Products of small activations are smaller still, and are to be compared all the same."""


class SP(Method):
    """The student's images are as similar to each other as the teacher's.

    Args:
        sizes: of both networks.
    """

    weight: ClassVar[float] = 3000.0
    hints: ClassVar[Literal["none", "stages", "middle", "last"]] = "last"

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equation, summed over the layers, (n,)."""
        values = student.features.new_zeros(len(student.features))
        for own, wanted in zip(student.hints, lesson.teacher.hints, strict=True):
            difference = _similarities(own, lesson.rows) - _similarities(wanted, lesson.rows)
            values = values + difference.square().mean(1)
        return values


def _similarities(maps: Tensor, rows: Rows) -> Tensor:
    """Maps (n, C, h, w) to unit rows of similarities (n, N)."""
    own = maps.flatten(1)  # (n, C h w)
    return unit_rows(own @ rows.gather(own).T, shortest=_SHORTEST)

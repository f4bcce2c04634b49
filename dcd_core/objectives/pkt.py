"""PKT: Probabilistic Knowledge Transfer (Passalis & Tefas, ECCV 2018, arXiv 1803.10837).

With the similarity K(a, b) = (cosine(a, b) + 1) / 2 of penultimate features:

    p_j|i = K(x_i, x_j) / sum_{k != i} K(x_i, x_k)      for j != i
    pkt   = 1/N^2 sum_i sum_{j != i} p^t_j|i log(p^t_j|i / p^s_j|i)

Zero where each image has the same neighbours in both networks.

Default: weight 30000, of the CRD protocol, whose mean is over N^2 too. (The paper sums over j and
trains on this term alone.)

Over ranks: neighbours are the images of the global batch; each rank does its n x N rows.

Shape letters: n images on this rank, N on all ranks.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dcd_core.features import HintedOutput
from dcd_core.objectives.layers import unit_rows
from dcd_core.objectives.method import Lesson, Method, Rows

_SMALLEST = 1e-7
"""Of a similarity: features that point in opposite directions have 0, whose logarithm is not
finite."""


class PKT(Method):
    """The student's images have the teacher's probabilities of being neighbours.

    Args:
        sizes: of both networks.
    """

    weight: ClassVar[float] = 30000.0

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equation, (n,)."""
        if lesson.rows.num_images < 2:
            return student.features.new_zeros(len(student.features))
        log_student = _log_neighbours(student.features, lesson.rows)
        log_teacher = _log_neighbours(lesson.teacher.features, lesson.rows)
        return (log_teacher.exp() * (log_teacher - log_student)).mean(1)


def _log_neighbours(features: Tensor, rows: Rows) -> Tensor:
    """Logarithms of the conditional probabilities, (n, N); very low for the image itself."""
    own = unit_rows(features)
    similarity = ((own @ rows.gather(own).T + 1) / 2).clamp_min(_SMALLEST)  # (n, N)
    itself = torch.arange(len(own), device=own.device)[:, None] + rows.first
    # Finite, because the difference of two infinities is not a number.
    lowest = torch.finfo(own.dtype).min / 2
    return similarity.log().scatter(1, itself, lowest).log_softmax(1)

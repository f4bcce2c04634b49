"""RKD: Relational Knowledge Distillation (Park et al., CVPR 2019, arXiv 1904.05068).

With features s_i, t_i, their distances d_ij = |x_i - x_j| divided by the mean mu over all pairs of
the batch, the directions e_ij = (x_j - x_i) / |x_j - x_i|, and Huber's loss l (Smooth L1):

    distance = mean_ij  l(d^s_ij / mu_s, d^t_ij / mu_t)
    angle    = mean_ijk l(<e^s_ij, e^s_ik>, <e^t_ij, e^t_ik>)
    rkd      = distance_weight distance + angle_weight angle

The means are over all N^2 pairs and N^3 triples, of which those of an image with itself are zero.
Zero where the student's features are the teacher's, but for a shift, a rotation and a scale.

Defaults: weight 1 with distance_weight 25 and angle_weight 50, as in the CRD protocol's code for
CIFAR-100; the paper has the ratio 1 : 2. Features: penultimate.

Over ranks: pairs and triples of the global batch. A rank does those with its own images first,
n x N distances and n x N x N angles.

Shape letters: n images on this rank, N on all ranks, D feature dimensions.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dcd_core.features import HintedOutput
from dcd_core.objectives.method import Lesson, Method, Rows, Sizes, check_number

_SHORTEST = 1e-6
"""Images whose features lie closer together than this have no direction between them: the gradient
of one would grow as 1 / distance."""


class RKD(Method):
    """The student keeps the teacher's relative distances and angles between images.

    Args:
        sizes: of both networks.
        distance_weight: of the distances between two images.
        angle_weight: of the angles between three.
    """

    weight: ClassVar[float] = 1.0

    def __init__(
        self, sizes: Sizes, *, distance_weight: float = 25.0, angle_weight: float = 50.0
    ) -> None:
        super().__init__(sizes)
        self.distance_weight = check_number("distance_weight", distance_weight, at_least=0)
        self.angle_weight = check_number("angle_weight", angle_weight, at_least=0)
        if distance_weight == angle_weight == 0:
            raise ValueError("distance_weight and angle_weight are both 0: nothing to compare")

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equations, (n,)."""
        rows, teacher = lesson.rows, lesson.teacher
        values = student.features.new_zeros(len(student.features))
        if rows.num_images < 2:
            return values
        own, wanted = student.features, teacher.features
        all_own, all_wanted = rows.gather(own), rows.gather(wanted)
        if self.distance_weight > 0:
            huber = F.smooth_l1_loss(
                relative_distances(own, all_own, rows=rows),
                relative_distances(wanted, all_wanted, rows=rows),
                reduction="none",
            )  # (n, N)
            values = values + self.distance_weight * huber.mean(1)
        if self.angle_weight > 0:
            huber = F.smooth_l1_loss(
                cosines(own, all_own), cosines(wanted, all_wanted), reduction="none"
            )  # (n, N, N)
            values = values + self.angle_weight * huber.mean((1, 2))
        return values


def relative_distances(own: Tensor, others: Tensor, *, rows: Rows) -> Tensor:
    """Distances divided by their mean over all pairs of different images.

    Args:
        own: (n, D).
        others: those of all ranks, (N, D).
        rows: how they lie on the ranks.

    Returns:
        (n, N).
    """
    # Not by a matrix product, which loses the digits of small distances.
    distances = torch.cdist(own, others, compute_mode="donot_use_mm_for_euclid_dist")
    num_pairs = rows.num_images * (rows.num_images - 1)
    mean = rows.gather(distances.sum(1)).sum() / num_pairs
    # Where all images have the same feature, all distances are 0 and so is every share of them.
    return distances / mean.clamp_min(_SHORTEST)


def cosines(own: Tensor, others: Tensor) -> Tensor:
    """Cosine of the angle at image i between images j and k.

    Args:
        own: images i, (n, D).
        others: images j and k, (N, D).

    Returns:
        (n, N, N); 0 where j or k has the feature of i.
    """
    differences = others[None] - own[:, None]  # (n, N, D)
    lengths: Tensor = torch.linalg.vector_norm(differences, dim=2, keepdim=True)
    inverse = lengths.clamp_min(_SHORTEST).reciprocal().masked_fill(lengths < _SHORTEST, 0.0)
    directions: Tensor = differences * inverse  # (n, N, D)
    return directions @ directions.mT

"""Pieces that several methods are made of.

Shape letters: B images, C channels, h x w pixels of a feature map, D feature dimensions, P
embedding dimensions.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_SHORTEST = 1e-6
"""Vectors shorter than this are not stretched to unit length: at 0 there is no direction, and the
gradient of the normalisation grows as 1 / length."""


class Embedding(nn.Linear):
    """A linear layer whose outputs are scaled to unit length."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D) to (B, P)."""
        return unit_rows(super().forward(features.to(self.weight.dtype)))


def unit_rows(vectors: Tensor, *, shortest: float = _SHORTEST) -> Tensor:
    """Scale vectors (B, D) to unit length, unless they are shorter than ``shortest``."""
    return F.normalize(vectors, dim=1, eps=shortest)


def pooled_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average the feature map with more pixels over areas, so that both have as many.

    Args:
        student: (B, C, h, w).
        teacher: (B, C', h', w').

    Returns:
        Both with min(h, h') x min(w, w') pixels.
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    pooled = [
        part if part.shape[2:] == size else F.adaptive_avg_pool2d(part, size)
        for part in (student, teacher)
    ]
    return pooled[0], pooled[1]

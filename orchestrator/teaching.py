"""The teacher's answers to the images of a step, computed as they are needed.

Shape letters: n images, K classes, D feature dimensions.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dcd_core import FrozenTeacher, HintedOutput, normalize
from orchestrator.evaluation import PixelStatistics


class Answers(NamedTuple):
    """What a teacher says to some images, in float32."""

    logits: Tensor  # (n, K)
    features: Tensor  # (n, D)


class Teaching(Protocol):
    """Where a teacher's answers come from."""

    @property
    def feature_dim(self) -> int:
        """D."""
        ...

    def begin(self, epoch: int) -> None:
        """An epoch begins."""
        ...

    def recall(self, positions: Tensor, *, place: int) -> Answers | None:
        """The answers to some images of the epoch, where they are at hand; else the teacher runs.

        Args:
            positions: of the images in the training split, (n,); n may be 0.
            place: of the micro-batch's first image in the order of the epoch.
        """
        ...

    def run(self, images: Tensor) -> Answers | HintedOutput:
        """The teacher's answers to images, augmented, (n, C, H, W) uint8; n may be 0.

        With intermediate features where the teacher gives them.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """What there is to tell about the epoch."""
        ...


class LiveTeaching:
    """The teacher is run.

    Args:
        teacher: the network.
        pixels: what it sees.
        dtype: that its answers are rounded to; by default the precision that it computes in, which
            changes nothing where its last layers do.
    """

    def __init__(
        self, teacher: FrozenTeacher, *, pixels: PixelStatistics, dtype: torch.dtype | None = None
    ) -> None:
        self._teacher = teacher
        self._pixels = pixels
        self.dtype = dtype or teacher.precision
        self.feature_dim = teacher.feature_dim
        self.num_classes = teacher.num_classes

    def begin(self, epoch: int) -> None:
        """Nothing depends on it."""

    def recall(self, positions: Tensor, *, place: int) -> None:
        """Nothing is known before."""

    def metrics(self) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    def run(self, images: Tensor) -> Answers | HintedOutput:
        """Run the teacher."""
        inputs = normalize(images, mean=self._pixels.mean, std=self._pixels.std)
        if len(images) == 0:  # many networks cannot run on no image: run one and take no row of it
            inputs = torch.zeros(1, *inputs.shape[1:], device=inputs.device)
        output = HintedOutput(*self._teacher(inputs))
        logits, features, *hints = (
            _rounded(part[: len(images)], self.dtype)
            for part in (output.logits, output.features, *output.hints)
        )
        if hints:
            return HintedOutput(logits, features, tuple(hints))
        return Answers(logits, features)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What is too large for fp16, and not infinite itself, becomes its largest number."""
    if dtype == torch.float16:
        limit = torch.finfo(dtype).max
        values = torch.where(values.isinf(), values, values.clamp(-limit, limit))
    return values.to(dtype).float()

"""What an evaluation has found."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.assessment.costs import Costs
from orchestrator.assessment.metrics import Agreement, Quality


class Judged(NamedTuple):
    """One classifier on the images."""

    name: str
    quality: Quality
    costs: Costs


class Evaluation(NamedTuple):
    """A model on the images of a split, beside its teacher where that could be had."""

    model: Judged
    teacher: Judged | None
    agreement: Agreement | None
    """Of the model with the teacher."""
    data: str
    """What the images are, in a line."""
    fingerprint: str
    """Of the images."""
    split: str
    class_names: tuple[str, ...]
    """(K,)"""
    notes: tuple[str, ...]
    """What the reader should know."""

    @property
    def num_images(self) -> int:
        """Of the split."""
        return int(self.model.quality.confusion.sum())

"""Labels and the names of their classes, checked before any image is decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.data.raw import Integers, RawData, RawImages
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec


def check_test_split(raw: RawData, spec: DataSpec) -> None:
    if raw.test is None and spec.test_fraction is None:
        remedy = "" if spec.source == "digits" else "data.test_path or "
        raise UserError(
            f"{spec.path or spec.source} has no test split: set {remedy}data.test_fraction"
        )
    if raw.test is not None and spec.test_fraction is not None:
        raise UserError(f"{spec.path} has its own test split: drop data.test_fraction")


def find_class_names(raw: RawData, spec: DataSpec) -> tuple[str, ...]:
    """(K,) names; K is `data.num_classes`, else the named classes, else found in the labels."""
    if raw.class_names is not None:
        named = raw.class_names
        num_classes = spec.num_classes or len(named)
        return (*named, *(str(label) for label in range(len(named), num_classes)))[:num_classes]
    if spec.num_classes is not None:
        return tuple(str(label) for label in range(spec.num_classes))
    present = np.unique(raw.train.labels[raw.train.labels >= 0])
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if gaps.size:
        raise UserError(
            f"{spec.path}: labels go up to {present[-1]}, but no training image has label "
            f"{gaps[0]}: number classes 0, 1, ..., or set data.num_classes"
        )
    return tuple(str(label) for label in present)


def checked_labels(raw: RawImages, class_names: Sequence[str], *, where: str) -> Integers:
    """(M,) labels as int64."""
    if len(raw.labels) == 0:
        raise UserError(f"{where} holds no images")
    outside = np.flatnonzero((raw.labels < 0) | (raw.labels >= len(class_names)))
    if outside.size:
        first = int(outside[0])
        raise UserError(
            f"{raw.name(first)}: label {raw.labels[first]} is outside 0..{len(class_names) - 1}: "
            "correct it or data.num_classes"
        )
    return raw.labels.astype(np.int64)

"""How many images each class has, and accuracies of classes with many and with few of them.

K: classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.data.dataset import Dataset, Split
from orchestrator.data.raw import Integers

CLASS_TABLE = "classes.csv"
"""Of `class_table`, in a run's folder and among its artifacts."""
_UNBALANCED = 2.0
"""Images of the most frequent class over those of the least frequent one, from which on a training
split counts as unbalanced; stratified cuts alone stay below."""
_GROUPS = ("many", "medium", "few")
_MANY, _FEW = 100, 20
"""More than the one is many, less than the other few: Liu et al. 2019, arXiv 1904.05160."""


def class_counts(split: Split, num_classes: int) -> Integers:
    """(K,) images of each class."""
    return np.bincount(split.labels, minlength=num_classes)


def describe_balance(dataset: Dataset) -> str | None:
    """The most and the least frequent class of an unbalanced training split; None if balanced."""
    counts = class_counts(dataset.train, dataset.num_classes)
    if not _is_unbalanced(counts):
        return None
    present = np.flatnonzero(counts)
    most, least = int(counts.argmax()), int(present[counts[present].argmin()])
    return (
        f"classes are unbalanced: {counts[most]:,} training images of {dataset.class_names[most]!r}"
        f" and {counts[least]:,} of {dataset.class_names[least]!r}, a ratio of "
        f"{counts[most] / counts[least]:.3g}"
    )


def shot_groups(counts: Integers) -> dict[str, list[int]]:
    """Classes with many, a medium number of, and few training images.

    More than 100, 20 to 100, and less than 20. Where that leaves a group empty, a third of the
    classes each, by their number of images.

    Args:
        counts: (K,) training images of each class; classes without any are in no group.

    Returns:
        Classes by name of the group; nothing when the split is balanced or has under three classes.
    """
    present = np.flatnonzero(counts)
    if not _is_unbalanced(counts) or len(present) < len(_GROUPS):
        return {}
    sizes = counts[present]
    fixed = (sizes > _MANY, (sizes <= _MANY) & (sizes >= _FEW), sizes < _FEW)
    groups = [present[part] for part in fixed]
    if not all(group.size for group in groups):
        groups = np.array_split(present[np.argsort(-sizes, kind="stable")], len(_GROUPS))
    return {name: group.tolist() for name, group in zip(_GROUPS, groups, strict=True)}


def group_metrics(
    prefix: str, class_top1: Sequence[float | None], groups: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """The mean top-1 of the classes of each group, as ``prefix/top1_many`` and so on.

    Args:
        prefix: of the metrics, the split.
        class_top1: (K,) top-1 of each class in percent; None for one without images to score.
        groups: as of `shot_groups`.
    """
    metrics: dict[str, float] = {}
    for name, classes in groups.items():
        known = [value for each in classes if (value := class_top1[each]) is not None]
        if known:
            metrics[f"{prefix}/top1_{name}"] = sum(known) / len(known)
    return metrics


def class_table(dataset: Dataset, scores: Mapping[str, Sequence[float | None]]) -> str:
    """A line per class, as CSV: number, name, group, images of each split, and scores.

    Args:
        dataset: whose classes.
        scores: further columns by their heading, (K,) each.
    """
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    counts = {
        f"{name}_images": class_counts(split, dataset.num_classes)
        for name, split in splits.items()
        if split is not None
    }
    groups = shot_groups(counts["train_images"])
    group_of = {each: name for name, classes in groups.items() for each in classes}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", "name", "group", *counts, *scores])
    for number, name in enumerate(dataset.class_names):
        values = [column[number] for column in scores.values()]
        shown = ["" if value is None else f"{value:.2f}" for value in values]
        images = [column[number] for column in counts.values()]
        table.writerow([number, name, group_of.get(number, ""), *images, *shown])
    return text.getvalue()


def _is_unbalanced(counts: Integers) -> bool:
    present = counts[counts > 0]
    return bool(present.max() >= _UNBALANCED * present.min())

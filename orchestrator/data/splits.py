"""Cutting a labelled set into train, validation and test.

Each image is placed by a hash of (split seed, its index in the source) alone, so a cut does not
depend on the order of reading, on the machine, or on what is later done with the training share.

M: images of the source, K: classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dcd_core import mix
from orchestrator.data.raw import Integers
from orchestrator.errors import UserError

# Streams of the hash: a cut must not favour the images that another cut favoured.
_TEST_STREAM = 101
_VAL_STREAM = 102
_TRAIN_STREAM = 103


class Cuts(NamedTuple):
    """Source indices of each cut, ascending."""

    train: Integers
    val: Integers
    test: Integers | None


def make_cuts(
    indices: Integers,
    labels: Integers,
    *,
    class_names: Sequence[str],
    split_seed: int,
    val_fraction: float,
    test_fraction: float | None = None,
    limit: int | None = None,
    labels_per_class: int | None = None,
    imbalance: float | None = None,
) -> Cuts:
    """Cut off test, then validation, then thin out what is left for training.

    Args:
        indices: (M,) index of each image in its source, in any order.
        labels: (M,) class of each image.
        class_names: (K,) names, for messages.
        split_seed: decides the cuts.
        val_fraction: share of what the test cut leaves, of each class.
        test_fraction: share of all images, of each class; None cuts no test split.
        limit: train on this many of the images left, whatever their class.
        labels_per_class: train on this many of the images left of each class.
        imbalance: train on exponentially fewer images of each class than of the one before, on
            this many times as many of the first as of the last.

    Raises:
        UserError: a cut would be empty, would leave a class without training images, or there are
            fewer images than `limit` or `labels_per_class` asks for.
    """
    ascending = np.argsort(indices)
    indices, labels = indices[ascending], labels[ascending]
    classes_present = np.unique(labels)

    test = None
    if test_fraction is not None:
        in_test = _stratified(
            indices, labels, fraction=test_fraction, seed=split_seed, stream=_TEST_STREAM
        )
        test = indices[in_test]
        indices, labels = indices[~in_test], labels[~in_test]
        if test.size == 0:
            raise UserError(
                f"data.test_fraction {test_fraction:g} leaves the test split empty, because every "
                "class has only one image: add images"
            )

    in_val = _stratified(
        indices, labels, fraction=val_fraction, seed=split_seed, stream=_VAL_STREAM
    )
    val = indices[in_val]
    indices, labels = indices[~in_val], labels[~in_val]
    _check_every_class_trains(classes_present, labels, class_names)
    if val.size == 0:
        raise UserError(
            f"data.val_fraction {val_fraction:g} leaves the validation split empty, because no "
            "class has two images for it and training: add images"
        )

    if limit is not None:
        if limit > indices.size:
            raise UserError(
                f"data.limit {limit:,} is more than the {indices.size:,} images that validation "
                f"and test leave for training: lower it to {indices.size} at most"
            )
        chosen = np.sort(_hash_order(indices, seed=split_seed, stream=_TRAIN_STREAM)[:limit])
        indices = indices[chosen]
    elif labels_per_class is not None:
        _check_labels_per_class(labels_per_class, labels, class_names)
        rank = _rank_in_class(indices, labels, seed=split_seed, stream=_TRAIN_STREAM)
        indices = indices[rank < labels_per_class]
    elif imbalance is not None:
        quotas = _long_tail(labels, classes_present, factor=imbalance)
        rank = _rank_in_class(indices, labels, seed=split_seed, stream=_TRAIN_STREAM)
        indices = indices[rank < quotas[np.searchsorted(classes_present, labels)]]
    return Cuts(indices, val, test)


def _stratified(
    indices: Integers, labels: Integers, *, fraction: float, seed: int, stream: int
) -> NDArray[np.bool_]:
    """(M,) True for the rounded share of each class, at least one image where a class has two."""
    _, position, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    quotas = [max(round(size * fraction), 1 if size >= 2 else 0) for size in sizes.tolist()]
    rank = _rank_in_class(indices, labels, seed=seed, stream=stream)
    return rank < np.asarray(quotas, dtype=np.int64)[position]


def _long_tail(labels: Integers, classes: Integers, *, factor: float) -> Integers:
    """How many images each of K classes keeps: n factor^(-k / (K - 1)) of class k.

    The cut of long-tailed CIFAR (Cui et al. 2019, arXiv 1901.05555), with the size of the smallest
    class as n.
    """
    most = min(np.count_nonzero(labels == each) for each in classes)
    if factor > most:
        raise UserError(
            f"data.imbalance {factor:g} leaves less than one image of the last class, because the "
            f"smallest class has {most:,} training images left: lower it to {most} at most"
        )
    falling = most * factor ** (-np.arange(len(classes)) / (len(classes) - 1))
    return np.rint(falling).astype(np.int64)


def _rank_in_class(indices: Integers, labels: Integers, *, seed: int, stream: int) -> Integers:
    """(M,) place of each image among those of its class, by hash."""
    by_hash = _hash_order(indices, seed=seed, stream=stream)
    order = by_hash[np.argsort(labels[by_hash], kind="stable")]  # grouped by class, hash order kept
    grouped = labels[order]
    rank = np.empty_like(indices)
    rank[order] = np.arange(indices.size) - np.searchsorted(grouped, grouped)
    return rank


def _hash_order(indices: Integers, *, seed: int, stream: int) -> Integers:
    """(M,) positions in the order of their hash, ties by index."""
    hashes = mix(seed, 0, torch.from_numpy(indices), stream).numpy()
    return np.lexsort((indices, hashes)).astype(np.int64)


def _check_every_class_trains(
    classes_present: Integers, labels: Integers, class_names: Sequence[str]
) -> None:
    emptied = np.setdiff1d(classes_present, labels)
    if emptied.size:
        raise UserError(
            f"class {class_names[emptied[0]]!r} has too few images: validation and test take all "
            "of them and leave none for training; add images or lower data.val_fraction and "
            "data.test_fraction"
        )


def _check_labels_per_class(
    labels_per_class: int, labels: Integers, class_names: Sequence[str]
) -> None:
    classes, sizes = np.unique(labels, return_counts=True)
    smallest = int(np.argmin(sizes))
    if labels_per_class > sizes[smallest]:
        raise UserError(
            f"data.labels_per_class {labels_per_class:,} is more than the {sizes[smallest]:,} "
            f"training images left of class {class_names[classes[smallest]]!r}: lower it to "
            f"{sizes[smallest]} at most"
        )

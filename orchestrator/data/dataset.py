"""The images and labels of one experiment, in memory.

M: images of a split, C, H, W: channels, height, width, K: classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.data.decode import decode_images
from orchestrator.data.raw import Integers, Pixels, RawData, RawImages
from orchestrator.data.sources import SOURCES
from orchestrator.data.splits import make_cuts
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

_CHUNK = 4096  # images; bounds the integer copy that counting pixel values makes


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split. Plain arrays, so that an object store can share them without a copy."""

    images: Pixels
    """(M, C, H, W), C-contiguous."""
    labels: Integers
    """(M,) classes, 0..K-1."""
    indices: Integers
    """(M,) ascending index of each image in its source, before any cut. A test split that the
    source brings has a numbering of its own."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of one experiment and what is known about them."""

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    class_names: tuple[str, ...]
    num_classes: int
    fingerprint: str
    """16 hex digits over images, labels and indices of all splits and the number of classes."""
    skipped: int
    """Images left out because they could not be decoded."""
    mean: tuple[float, ...]
    """(C,) mean of the training pixels, scaled to [0, 1]."""
    std: tuple[float, ...]
    """(C,) their standard deviation over all pixels."""


def load_dataset(spec: DataSpec) -> Dataset:
    """Read, check, cut and decode; only images that end up in a split are decoded.

    Cuts are made over all images of the source. With `on_error: skip`, an image that cannot be
    decoded then drops out of its split, which moves no other image to another split.

    Raises:
        UserError: the data is absent, damaged, inconsistent, or too small for the cuts.
    """
    raw = SOURCES[spec.source](spec)
    _check_test_split(raw, spec)
    class_names = _class_names(raw, spec)
    labels = _checked_labels(raw.train, class_names, where=spec.path or spec.source)
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"{spec.path or spec.source}: all {len(labels):,} training images are of class "
            f"{class_names[labels[0]]!r}: at least two classes are needed"
        )
    cuts = make_cuts(
        np.arange(len(labels), dtype=np.int64),
        labels,
        class_names=class_names,
        split_seed=spec.split_seed,
        val_fraction=spec.val_fraction,
        test_fraction=spec.test_fraction,
        limit=spec.limit,
        labels_per_class=spec.labels_per_class,
    )
    own_cuts = {"training": cuts.train, "validation": cuts.val}
    if cuts.test is not None:
        own_cuts["test"] = cuts.test
    sets, skipped = _image_sets(raw.train, labels, own_cuts, spec)
    train, val, test = sets["training"], sets["validation"], sets.get("test")
    if raw.test is not None:
        test_labels = _checked_labels(
            raw.test, class_names, where=f"test split of {spec.test_path or spec.path}"
        )
        everything = {"test": np.arange(len(test_labels), dtype=np.int64)}
        test_sets, test_skipped = _image_sets(raw.test, test_labels, everything, spec)
        test, skipped = test_sets["test"], skipped + test_skipped
        _check_same_shape(train, test)
    mean, std = _channel_statistics(train.images)
    if spec.normalize is None and min(std) == 0:
        raise UserError(
            f"channel {std.index(0)} has one value in all pixels of all training images, so its "
            "standard deviation is 0: set data.normalize"
        )
    return Dataset(
        train=train,
        val=val,
        test=test,
        class_names=class_names,
        num_classes=len(class_names),
        fingerprint=_fingerprint((train, val, test), num_classes=len(class_names)),
        skipped=skipped,
        mean=mean,
        std=std,
    )


def describe_counts(dataset: Dataset) -> str:
    """One line: images per split, number of classes, shape of an image."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    counts = " · ".join(
        f"{name} {len(images):,}" for name, images in splits.items() if images is not None
    )
    shape = "x".join(str(extent) for extent in dataset.train.images.shape[1:])
    return f"{counts} images, {dataset.num_classes} classes, {shape}"


def _check_test_split(raw: RawData, spec: DataSpec) -> None:
    if raw.test is None and spec.test_fraction is None:
        remedy = "" if spec.source == "digits" else "data.test_path or "
        raise UserError(
            f"{spec.path or spec.source} has no test split: set {remedy}data.test_fraction"
        )
    if raw.test is not None and spec.test_fraction is not None:
        raise UserError(f"{spec.path} has its own test split: drop data.test_fraction")


def _class_names(raw: RawData, spec: DataSpec) -> tuple[str, ...]:
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


def _checked_labels(raw: RawImages, class_names: Sequence[str], *, where: str) -> Integers:
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


def _image_sets(
    raw: RawImages, labels: Integers, cuts: dict[str, Integers], spec: DataSpec
) -> tuple[dict[str, ImageSet], int]:
    """Decode the images of all cuts into one array; the splits are views of it.

    Returns:
        The split of each cut, and how many images were skipped.
    """
    size = (spec.resize, spec.resize) if isinstance(spec.resize, int) else spec.resize
    positions = np.concatenate(list(cuts.values()))
    decoded = decode_images(
        raw, positions, size=size, grey_to_rgb=spec.grey_to_rgb, on_error=spec.on_error
    )
    sets: dict[str, ImageSet] = {}
    first_position, first_image = 0, 0
    for name, cut in cuts.items():
        kept = cut[decoded.kept[first_position : first_position + len(cut)]]
        if kept.size == 0:
            raise UserError(f"none of the {len(cut):,} {name} images could be decoded")
        images = decoded.images[first_image : first_image + len(kept)]
        sets[name] = ImageSet(images=images, labels=labels[kept], indices=kept)
        first_position += len(cut)
        first_image += len(kept)
    return sets, len(positions) - first_image


def _check_same_shape(train: ImageSet, test: ImageSet) -> None:
    train_shape, test_shape = train.images.shape[1:], test.images.shape[1:]
    if train_shape != test_shape:
        remedy = "data.grey_to_rgb" if train_shape[1:] == test_shape[1:] else "data.resize"
        raise UserError(
            f"training images are {'x'.join(map(str, train_shape))} and test images "
            f"{'x'.join(map(str, test_shape))} (channels x height x width): set {remedy}"
        )


def _channel_statistics(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(C,) mean and (C,) standard deviation of values / 255, exact: from counts of each value."""
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)  # (C, 256)
    means = shares @ values  # (C,)
    variances = (shares * (values - means[:, None]) ** 2).sum(axis=1)  # (C,)
    return tuple(means.tolist()), tuple(np.sqrt(variances).tolist())


def _fingerprint(splits: Sequence[ImageSet | None], *, num_classes: int) -> str:
    digest = hashlib.sha256(f"classes {num_classes}".encode())
    for split in splits:
        if split is None:
            digest.update(b"no split")
            continue
        digest.update(f"images {split.images.shape}".encode())
        for array in (split.images, split.labels, split.indices):
            digest.update(array.data)
    return digest.hexdigest()[:16]

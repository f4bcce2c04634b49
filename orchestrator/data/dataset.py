"""The images and labels of one experiment, in memory.

M: images of a split, C, H, W: channels, height, width, K: classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.data.classes import check_labels, find_classes, name_classes, renumber
from orchestrator.data.decode import decode_images
from orchestrator.data.raw import Integers, Pixels, RawData, RawImages
from orchestrator.data.sources import read_source
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
    """16 hex digits over images, labels and indices of all splits, the number of classes, and what
    part of an image networks are evaluated on."""
    skipped: int
    """Images left out because they could not be decoded."""
    mean: tuple[float, ...]
    """(C,) mean of the training pixels, scaled to [0, 1]."""
    std: tuple[float, ...]
    """(C,) their standard deviation over all pixels."""
    crop_size: int | None = None
    """Side of the square from the centre that networks are evaluated on; None for all of it."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what networks see."""
        channels, height, width = self.train.images.shape[1:]
        if self.crop_size is not None:
            height = width = self.crop_size
        return channels, height, width


def load_dataset(spec: DataSpec) -> Dataset:
    """Read, check, cut and decode; only images that end up in a split are decoded.

    Cuts are made over all images of the source. With `on_error: skip`, an image that cannot be
    decoded then drops out of its split, which moves no other image to another split.

    Raises:
        UserError: the data is absent, damaged, inconsistent, or too small for the cuts.
    """
    raw = read_source(spec)
    _check_test_split(raw, spec)
    class_names, labels, test_labels = _labels(raw, spec)
    own = np.flatnonzero(labels >= 0)
    cuts = make_cuts(
        own,
        labels[own],
        class_names=class_names,
        split_seed=spec.split_seed,
        val_fraction=spec.val_fraction,
        test_fraction=spec.test_fraction,
        limit=spec.limit,
        labels_per_class=spec.labels_per_class,
        imbalance=spec.imbalance,
    )
    own_cuts = {"training": cuts.train, "validation": cuts.val}
    if cuts.test is not None:
        own_cuts["test"] = cuts.test
    sets, skipped = _image_sets(raw.train, labels, own_cuts, spec)
    train, val, test = sets["training"], sets["validation"], sets.get("test")
    if raw.test is not None and test_labels is not None:
        everything = {"test": np.flatnonzero(test_labels >= 0)}
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
        fingerprint=_fingerprint(
            (train, val, test), num_classes=len(class_names), crop_size=spec.evaluation_crop
        ),
        skipped=skipped,
        mean=mean,
        std=std,
        crop_size=spec.evaluation_crop,
    )


def describe_counts(dataset: Dataset) -> str:
    """One line: images per split, number of classes, shape of an image."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    counts = " · ".join(
        f"{name} {len(images):,}" for name, images in splits.items() if images is not None
    )
    shape = "x".join(str(extent) for extent in dataset.train.images.shape[1:])
    text = f"{counts} images, {dataset.num_classes} classes, {shape}"
    if dataset.crop_size is not None:
        text += f", seen as {dataset.crop_size}x{dataset.crop_size}"
    return text


def _check_test_split(raw: RawData, spec: DataSpec) -> None:
    where = spec.path or spec.source
    if raw.test is None and spec.test_fraction is None:
        remedy = "set data.test_path or"
        if spec.path is None:  # digits, or a function of the user's own
            remedy = "return one under 'test', or set" if ":" in spec.source else "set"
        raise UserError(f"{where} has no test split: {remedy} data.test_fraction")
    if raw.test is not None and spec.test_fraction is not None:
        raise UserError(f"{where} has its own test split: drop data.test_fraction")


def _labels(raw: RawData, spec: DataSpec) -> tuple[tuple[str, ...], Integers, Integers | None]:
    """Names of the classes, and labels of the training and the test images.

    The label of an image whose class `data.classes` leaves out is -1.
    """
    class_names = name_classes(raw, spec)
    where = spec.path or spec.source
    labels = check_labels(raw.train, class_names, where=where)
    test_labels = None
    if raw.test is not None:
        where = f"test split of {spec.test_path or where}"
        test_labels = check_labels(raw.test, class_names, where=where)
    if spec.classes is not None:
        kept = find_classes(spec.classes, class_names)
        labels = renumber(labels, kept, num_classes=len(class_names))
        if test_labels is not None:
            test_labels = renumber(test_labels, kept, num_classes=len(class_names))
            if (test_labels < 0).all():
                raise UserError(f"{where}: no image is of the classes in data.classes")
        class_names = tuple(class_names[number] for number in kept)
        absent = np.setdiff1d(np.arange(len(kept)), labels)
        if absent.size:
            raise UserError(
                f"data.classes: no training image is of class {class_names[absent[0]]!r}: drop it"
            )
    present = np.unique(labels[labels >= 0])
    if len(present) < 2:
        raise UserError(
            f"{spec.path or spec.source}: all {len(labels):,} training images are of class "
            f"{class_names[present[0]]!r}: at least two classes are needed"
        )
    return class_names, labels, test_labels


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
        raw,
        positions,
        size=size,
        crop=spec.resize_by == "center_crop",
        grey_to_rgb=spec.grey_to_rgb,
        on_error=spec.on_error,
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


def _fingerprint(
    splits: Sequence[ImageSet | None], *, num_classes: int, crop_size: int | None
) -> str:
    digest = hashlib.sha256(f"classes {num_classes}".encode())
    if crop_size is not None:
        digest.update(f"evaluated on {crop_size}".encode())
    for split in splits:
        if split is None:
            digest.update(b"no split")
            continue
        digest.update(f"images {split.images.shape}".encode())
        for array in (split.images, split.labels, split.indices):
            digest.update(array.data)
    return digest.hexdigest()[:16]

"""The images and labels of one experiment, in memory or to be streamed.

M: images of a split, C, H, W: channels, height, width, K: classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from orchestrator.data.classes import check_labels, find_classes, name_classes, renumber
from orchestrator.data.decode import decode_images
from orchestrator.data.raw import Integers, Pixels, RawData, RawImages
from orchestrator.data.sources import read_source
from orchestrator.data.splits import make_cuts
from orchestrator.data.statistics import channel_statistics, count_values, measure_sample
from orchestrator.data.streamed import (
    Hash,
    StreamedSet,
    Wanted,
    check_same_shape,
    streamed_form,
    streamed_sets,
)
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec


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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def examples(self) -> Pixels:
        """(2, C, H, W), or fewer where there are no more."""
        return self.images[:2]

    def add_to(self, digest: Hash) -> None:
        """Count all of it into a fingerprint."""
        digest.update(f"images {self.images.shape}".encode())
        for array in (self.images, self.labels, self.indices):
            digest.update(array.data)


Split: TypeAlias = ImageSet | StreamedSet


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of one experiment and what is known about them."""

    train: Split
    val: Split
    test: Split | None
    class_names: tuple[str, ...]
    num_classes: int
    fingerprint: str
    """16 hex digits over images, labels and indices of all splits, the number of classes, and what
    part of an image networks are evaluated on; of images that are streamed, their files' names and
    sizes."""
    skipped: int
    """Images left out because they could not be decoded; of those that are streamed, none yet."""
    mean: tuple[float, ...]
    """(C,) mean of the training pixels, scaled to [0, 1]."""
    std: tuple[float, ...]
    """(C,) their standard deviation over all pixels."""
    crop_size: int | None = None
    """Side of the square from the centre that networks are evaluated on; None for all of it."""
    num_measured: int | None = None
    """Images of the sample that mean and standard deviation are of; None for all."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what networks see."""
        channels, height, width = self.train.shape
        if self.crop_size is not None:
            height = width = self.crop_size
        return channels, height, width

    @property
    def is_streamed(self) -> bool:
        """Whether images are read and decoded each time they are needed."""
        return isinstance(self.train, StreamedSet)

    @property
    def decoded_bytes(self) -> int:
        """What the images of all splits would take, or take, in memory."""
        splits = [split for split in (self.train, self.val, self.test) if split is not None]
        return sum(map(len, splits)) * int(np.prod(self.train.shape))


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
    wanted = [Wanted(raw.train, labels, own_cuts)]
    if raw.test is not None and test_labels is not None:
        wanted.append(Wanted(raw.test, test_labels, {"test": np.flatnonzero(test_labels >= 0)}))
    form = streamed_form(wanted, spec)
    sets: Mapping[str, Split]
    if form is None:
        held, skipped = _held(wanted, spec)
        num_measured, counts, sets = None, count_values(held["training"].images), held
    else:
        streams, skipped = streamed_sets(wanted, form, spec), 0
        num_measured, counts, examples = measure_sample(streams["training"], seed=spec.split_seed)
        sets = {name: replace(split, examples=examples) for name, split in streams.items()}
    train, val, test = sets["training"], sets["validation"], sets.get("test")
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
        crop_size=spec.evaluation_crop,
        num_measured=num_measured,
        **channel_statistics(counts, spec),
    )


def describe_counts(dataset: Dataset) -> str:
    """One line: images per split, number of classes, shape of an image."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    counts = " · ".join(
        f"{name} {len(images):,}" for name, images in splits.items() if images is not None
    )
    shape = "x".join(str(extent) for extent in dataset.train.shape)
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


def _held(wanted: Sequence[Wanted], spec: DataSpec) -> tuple[dict[str, ImageSet], int]:
    """All splits in memory, and how many images were skipped."""
    sets: dict[str, ImageSet] = {}
    skipped = 0
    for images, labels, cuts in wanted:
        own, own_skipped = _image_sets(images, labels, cuts, spec)
        sets, skipped = sets | own, skipped + own_skipped
    if len(wanted) > 1:
        check_same_shape(sets["training"].shape, sets["test"].shape)
    return sets, skipped


def _image_sets(
    raw: RawImages, labels: Integers, cuts: Mapping[str, Integers], spec: DataSpec
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


def _fingerprint(splits: Sequence[Split | None], *, num_classes: int, crop_size: int | None) -> str:
    digest = hashlib.sha256(f"classes {num_classes}".encode())
    if crop_size is not None:
        digest.update(f"evaluated on {crop_size}".encode())
    for split in splits:
        if split is None:
            digest.update(b"no split")
        else:
            split.add_to(digest)
    return digest.hexdigest()[:16]

"""The images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.spec.base import Count, Fraction, Positive, Section, Seed

STREAMABLE = ("imagefolder", "parquet")
"""Sources whose images any process can read a part of."""


class Normalization(Section):
    """Per-channel statistics of pixel values scaled to [0, 1]."""

    mean: tuple[float, ...] = Field(strict=False, min_length=1)
    """Subtracted from each channel."""
    std: tuple[Positive, ...] = Field(strict=False, min_length=1)
    """Each channel is divided by it."""

    @model_validator(mode="after")
    def _same_length(self) -> Normalization:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}: give one per channel"
            )
        return self


class DataSpec(Section):
    """Images and labels, and how they are cut into train, validation and test."""

    source: Literal["digits", "cifar10", "cifar100", "imagefolder", "parquet"] = "digits"
    """Where images come from: the digits shipped with scikit-learn, torchvision's CIFAR layouts on
    disk, a folder with one subfolder per class, or Parquet with encoded image bytes."""
    path: str | None = None
    """Folder, file, glob or URI of the training images. For `imagefolder`, a folder with `train/`
    (and perhaps `test/`) inside, or directly the class folders."""
    test_path: str | None = None
    """The same for test images, when they live elsewhere."""
    image_column: str = "image"
    """Parquet column with the encoded image bytes."""
    label_column: str = "label"
    """Parquet column with the integer class."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Number of classes; found in the data when not given."""
    resize: Count | Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    """Resize every image to this (height, width), or to a square. Needed when sizes differ."""
    grey_to_rgb: bool = False
    """Repeat the one channel of grey images three times."""
    augment: Literal["none", "crop_flip"] = "crop_flip"
    """`crop_flip`: pad by `crop_padding`, crop at random, flip at random (if `flip`)."""
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels of zero padding on each side before the random crop."""
    flip: bool = True
    """Mirror half of the images. Turn it off where left and right differ, as in digits."""
    normalize: Normalization | None = None
    """What the student sees: (x / 255 - mean) / std. Measured on the training split when absent."""
    test_fraction: Fraction | None = None
    """Share of all images cut off as test split; needed where the source has no test split."""
    val_fraction: Fraction = 0.1
    """Share of the rest, per class, used for validation and never for training."""
    limit: Count | None = None
    """Train on this many of the remaining images."""
    labels_per_class: Count | None = None
    """Train on this many of the remaining images of each class."""
    split_seed: Seed = 0
    """Decides the splits."""
    seed: Seed = 0
    """Decides the order of the images and their augmentation."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with an image that cannot be decoded; `skip` counts and logs them."""
    streaming: bool | Literal["auto"] = "auto"
    """Read and decode the images anew in each epoch instead of holding them: needed for sets that
    do not fit. `auto` streams an image folder or Parquet that, decoded, would take more than a
    quarter of this machine's memory."""
    memory_gib: Positive = 1.0
    """What streamed images may take in each worker, in GiB: half for the window that they are
    shuffled in, the rest for those on their way there."""
    download: bool = False
    """Let torchvision fetch CIFAR when it is not on disk."""

    @model_validator(mode="after")
    def _consistent(self) -> DataSpec:
        if self.streaming is True and self.source not in STREAMABLE:
            raise ValueError(
                f"streaming reads {' and '.join(STREAMABLE)}; source {self.source!r} is small and "
                "held in memory: drop streaming"
            )
        if self.limit is not None and self.labels_per_class is not None:
            raise ValueError("limit and labels_per_class exclude each other: give one of them")
        if self.source != "digits" and self.path is None:
            raise ValueError(f"path is needed for source {self.source!r}")
        if self.source == "digits" and (self.path or self.test_path):
            raise ValueError("source 'digits' is built in and takes neither path nor test_path")
        if self.test_path is not None and self.test_fraction is not None:
            raise ValueError("test_path and test_fraction exclude each other: give one of them")
        if self.source in ("cifar10", "cifar100") and (self.test_path or self.test_fraction):
            raise ValueError(f"{self.source} has its own test split: drop test_path, test_fraction")
        return self

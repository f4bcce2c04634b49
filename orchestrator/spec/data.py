"""The images."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from orchestrator.spec.base import Count, Fraction, Positive, Section, Seed

NamedSource = Literal[
    "digits",
    "cifar10",
    "cifar100",
    "stl10",
    "fashion_mnist",
    "tiny_imagenet",
    "imagenet",
    "imagefolder",
    "parquet",
]
FETCHED_SOURCES = ("cifar10", "cifar100", "stl10", "fashion_mnist")
"""Those that torchvision can download."""
_OWN_TEST_SPLIT = (*FETCHED_SOURCES, "tiny_imagenet", "imagenet")


def _module_function(source: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source):
        raise ValueError("module:function of your own")
    return source


def _names_or_numbers(classes: Any) -> Any:
    """Said at once: YAML reads yes and no as booleans, and each of them would be two errors."""
    is_list = isinstance(classes, list | tuple) and len(classes) >= 2
    if not is_list or not all(type(each) in (str, int) for each in classes):
        raise ValueError(
            "should be a list of at least two names or numbers, such as [cat, dog]; quote names "
            "such as 'yes' and 'no'"
        )
    return classes


FunctionSource = Annotated[str, AfterValidator(_module_function)]
Classes = Annotated[
    tuple[str | int, ...], Field(strict=False, min_length=2), BeforeValidator(_names_or_numbers)
]
STREAMABLE = ("imagefolder", "imagenet", "parquet")
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

    source: NamedSource | FunctionSource = "digits"
    """Where images come from: the digits shipped with scikit-learn, torchvision's layouts on disk,
    the original folders of Tiny ImageNet and ImageNet, a folder with one subfolder per class,
    Parquet with encoded image bytes, or `module:function` of your own."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the function of a `module:function` source."""
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
    classes: Classes | None = None
    """Keep the images of these classes only, by name or by number; they are numbered anew, in the
    order given here."""
    resize: Count | Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    """Resize every image to this (height, width), or to a square. Needed when sizes differ."""
    resize_by: Literal["stretch", "center_crop"] = "stretch"
    """`stretch` changes the aspect where it has to; `center_crop` keeps it, and keeps only the
    centre of an image of another aspect."""
    grey_to_rgb: bool = False
    """Repeat the one channel of grey images three times."""
    augment: Literal["none", "crop_flip", "imagenet"] = "crop_flip"
    """`crop_flip`: pad by `crop_padding`, crop at random, flip at random (if `flip`). `imagenet`:
    a random part, resized to `crop_size`, and the same flip; networks are evaluated on the
    centre."""
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels of zero padding on each side before the random crop of `crop_flip`."""
    crop_size: Count = 224
    """Side in pixels of the square that networks see under `augment: imagenet`."""
    flip: bool = True
    """Mirror half of the images. Turn it off where left and right differ, as in digits."""
    normalize: Normalization | None = None
    """What the student sees: (x / 255 - mean) / std. When absent, what weights that it starts from
    were trained on, else measured on the training split."""
    test_fraction: Fraction | None = None
    """Share of all images cut off as test split; needed where the source has no test split."""
    val_fraction: Fraction = 0.1
    """Share of the rest, per class, used for validation and never for training."""
    limit: Count | None = None
    """Train on this many of the remaining images."""
    labels_per_class: Count | None = None
    """Train on this many of the remaining images of each class."""
    imbalance: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """Make the remaining images long-tailed: the first class keeps this many times as many as the
    last one, and those between fall off exponentially."""
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
    """Let torchvision fetch CIFAR, STL-10 or Fashion-MNIST when it is not on disk."""

    @property
    def evaluation_crop(self) -> int | None:
        """Side of the square from the centre that networks are evaluated on; None for all of it."""
        return self.crop_size if self.augment == "imagenet" else None

    @model_validator(mode="after")
    def _consistent(self) -> DataSpec:
        thinning = ("limit", "labels_per_class", "imbalance")
        given = [name for name in thinning if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
        if self.classes is not None:
            if self.num_classes is not None:
                raise ValueError("classes and num_classes exclude each other: drop num_classes")
            if len(set(self.classes)) < len(self.classes):
                raise ValueError(f"classes names one twice: {list(self.classes)}")
        if self.streaming is True and self.source not in STREAMABLE:
            raise ValueError(
                f"streaming reads {', '.join(STREAMABLE)}; source {self.source!r} is held in "
                "memory: drop streaming"
            )
        if self.test_path is not None and self.test_fraction is not None:
            raise ValueError("test_path and test_fraction exclude each other: give one of them")
        if self.resize_by != "stretch" and self.resize is None:
            raise ValueError(f"resize_by {self.resize_by!r} needs resize: give the size")
        return self

    @model_validator(mode="after")
    def _suits_the_source(self) -> DataSpec:
        is_function = ":" in self.source
        if self.source == "digits" and (self.path or self.test_path):
            raise ValueError("source 'digits' is built in and takes neither path nor test_path")
        if is_function and (self.path or self.test_path):
            raise ValueError(
                f"source {self.source!r} takes neither path nor test_path: pass them in args"
            )
        if self.args and not is_function:
            raise ValueError(f"args are for a module:function, not for source {self.source!r}")
        if not is_function and self.source != "digits" and self.path is None:
            raise ValueError(f"path is needed for source {self.source!r}")
        if self.source in _OWN_TEST_SPLIT and (self.test_path or self.test_fraction):
            raise ValueError(f"{self.source} has its own test split: drop test_path, test_fraction")
        if self.download and self.source not in FETCHED_SOURCES:
            raise ValueError(
                f"download: {self.source} cannot be fetched, only {', '.join(FETCHED_SOURCES)}"
            )
        return self

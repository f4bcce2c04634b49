"""Where images come from: one function per `data.source`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from orchestrator.data.cifar import read_cifar
from orchestrator.data.fashion_mnist import read_fashion_mnist
from orchestrator.data.folders import read_imagefolder, read_imagenet
from orchestrator.data.function import read_function
from orchestrator.data.parquet import read_parquet
from orchestrator.data.raw import Integers, Pixels, RawData, RawImage, RawImages
from orchestrator.data.stl10 import read_stl10
from orchestrator.data.tiny_imagenet import read_tiny_imagenet
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec


def read_source(spec: DataSpec) -> RawData:
    """What `data.source` names: labels now, images when they are asked for.

    Raises:
        UserError: it is absent, damaged, or not laid out as it should be.
    """
    return SOURCES.get(spec.source, read_function)(spec)


def read_digits(spec: DataSpec) -> RawData:
    """The 1,797 handwritten digits inside scikit-learn: 8x8, grey, no test split.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "data.source 'digits' needs scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from error
    digits = load_digits()
    # Values are 0..16 (counts of ink in 4x4 cells).
    pixels: Pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # (M, 8, 8, 1)

    def read(positions: Integers) -> Iterator[RawImage]:
        return (pixels[position] for position in positions)

    train = RawImages(labels=digits.target, name=lambda position: f"digit {position}", read=read)
    return RawData(train=train, test=None, class_names=tuple("0123456789"))


SOURCES: dict[str, Callable[[DataSpec], RawData]] = {
    "digits": read_digits,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "stl10": read_stl10,
    "fashion_mnist": read_fashion_mnist,
    "tiny_imagenet": read_tiny_imagenet,
    "imagenet": read_imagenet,
    "imagefolder": read_imagefolder,
    "parquet": read_parquet,
}
"""By name; every other source is a `module:function`."""

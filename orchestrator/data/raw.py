"""What a source hands over: labels at once, pixels only for the images that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.remote import RemotePath

Pixels: TypeAlias = NDArray[np.uint8]
Integers: TypeAlias = NDArray[np.int64]

RawImage: TypeAlias = bytes | Path | RemotePath | Image.Image | Pixels | None
"""Encoded bytes, an encoded file here or elsewhere, a picture, pixels (H, W, C), or None where the
source has a hole."""


class Reader(Protocol):
    """Reads some images in any process that it is sent to."""

    def read(self) -> Iterator[RawImage]:
        """The images, in order.

        Raises:
            UserError: a file cannot be read.
        """
        ...


class Stored(Protocol):
    """The images of a set, where other processes can read them too."""

    @property
    def starts(self) -> Integers:
        """(P + 1,) first position of each part that is best read as a whole, and the end."""
        ...

    def reader(self, positions: Integers) -> Reader:
        """Of the images at some positions, those of a part together and ascending."""
        ...

    def name(self, position: int) -> str:
        """How messages call an image."""
        ...

    def digest(self) -> str:
        """Of names and sizes, but not of what is inside."""
        ...


@dataclass(frozen=True)
class RawImages:
    """A labelled set of images that are not decoded yet."""

    labels: NDArray[Any]
    """(M,) integers, not yet checked against the number of classes."""
    name: Callable[[int], str]
    """How messages call the image at a position: a file, or a shard and its row."""
    read: Callable[[Integers], Iterator[RawImage]]
    """Yields the images at ascending positions."""
    stored: Stored | None = None
    """None for images that are in memory already."""


@dataclass(frozen=True)
class RawData:
    """All that a source holds."""

    train: RawImages
    test: RawImages | None
    """None when the source has no test split."""
    class_names: tuple[str, ...] | None
    """None when the source does not name its classes."""

"""Fashion-MNIST as torchvision or Debian's package `dataset-fashion-mnist` puts it on disk."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.download import find_or_fetch, local_root
from orchestrator.data.raw import Integers, RawData, RawImage, RawImages
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

_FOLDER = Path("FashionMNIST", "raw")
_FILES = {
    split: (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    for split, prefix in (("train", "train"), ("test", "t10k"))
}
_CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_UNSIGNED_BYTES = 8
"""The type that the third byte of an IDX file names."""


def read_fashion_mnist(spec: DataSpec) -> RawData:
    """The 60,000 training and 10,000 test images, 28x28 in grey.

    The four files lie in `path/FashionMNIST/raw` or in `path` itself, compressed or not.

    Raises:
        UserError: files are absent (and not to be downloaded) or damaged.
    """
    root = local_root(spec)
    names = [name for pair in _FILES.values() for name in pair]
    folder = root
    if not all(_found(root, name) for name in names):
        folder = root / _FOLDER
        if not all(_found(folder, name) for name in names):
            find_or_fetch(spec, root=root, folder=folder, files=names)
    splits = {split: _read_split(folder, *pair) for split, pair in _FILES.items()}
    return RawData(train=splits["train"], test=splits["test"], class_names=_CLASS_NAMES)


def _found(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _read_split(folder: Path, images_name: str, labels_name: str) -> RawImages:
    images, labels = _read_idx(folder, images_name), _read_idx(folder, labels_name)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(
            f"{folder}: {images_name} holds {images.shape} values and {labels_name} "
            f"{labels.shape}, not one image and one label each: fetch both again"
        )

    def read(positions: Integers) -> Iterator[RawImage]:
        return (images[position][..., None] for position in positions)

    return RawImages(
        labels=labels.astype(np.int64),
        name=lambda position: f"{images_name} image {position}",
        read=read,
    )


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """An IDX file: two zeros, type, number of dimensions, each of them in 32 bits, the values."""
    path = _found(folder, name)
    assert path is not None
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}): fetch it again") from error
    num_dims = content[3] if len(content) > 3 else 0
    start = 4 + 4 * num_dims
    whole = content[:3] == bytes([0, 0, _UNSIGNED_BYTES]) and len(content) >= start
    shape = struct.unpack(f">{num_dims}I", content[4:start]) if whole else ()
    if not whole or len(content) - start != math.prod(shape):
        raise UserError(f"{path}: not an IDX file of bytes, or not all of it: fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)

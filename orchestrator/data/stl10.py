"""STL-10 in the binary layout that torchvision keeps on disk, without its unlabelled images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from orchestrator.data.download import find_or_fetch, local_root
from orchestrator.data.raw import Integers, Pixels, RawData, RawImage, RawImages
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

_FOLDER, _NAMES = "stl10_binary", "class_names.txt"
_FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", _NAMES)
_SIDE = 96


def read_stl10(spec: DataSpec) -> RawData:
    """The 5,000 labelled training images and the 8,000 test images, 96x96 in colour.

    Raises:
        UserError: files are absent (and not to be downloaded) or damaged.
    """
    root = local_root(spec)
    folder = root / _FOLDER
    find_or_fetch(spec, root=root, folder=folder, files=_FILES)
    return RawData(
        train=_read_split(folder, "train"),
        test=_read_split(folder, "test"),
        class_names=tuple((folder / _NAMES).read_text().split()),
    )


def _read_split(folder: Path, split: str) -> RawImages:
    labels = np.fromfile(folder / f"{split}_y.bin", dtype=np.uint8)
    path = folder / f"{split}_X.bin"
    size, expected = path.stat().st_size, len(labels) * 3 * _SIDE * _SIDE
    if size != expected or size == 0:
        raise UserError(
            f"{path}: {size:,} bytes, where the {len(labels):,} labels of {split}_y.bin stand for "
            f"{expected:,} bytes of 3x{_SIDE}x{_SIDE} images: fetch both again"
        )
    stored: Pixels = np.memmap(path, np.uint8, "r", shape=(len(labels), 3, _SIDE, _SIDE))
    images = stored.transpose(0, 3, 2, 1)  # (M, H, W, C): the file goes column by column

    def read(positions: Integers) -> Iterator[RawImage]:
        return (np.array(images[position]) for position in positions)

    return RawImages(
        labels=labels.astype(np.int64) - 1,  # stored as 1 to 10
        name=lambda position: f"{split}_X.bin image {position}",
        read=read,
    )

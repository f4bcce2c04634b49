"""Where images come from: one function per `data.source`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from orchestrator.data.cifar import read_cifar
from orchestrator.data.folder_files import FolderFiles
from orchestrator.data.parquet import read_parquet
from orchestrator.data.raw import Integers, Pixels, RawData, RawImage, RawImages
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

# Those of torchvision.datasets.ImageFolder, so that the same folder holds the same images.
IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)


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


def read_imagefolder(spec: DataSpec) -> RawData:
    """One folder per class, in `path/train` (and `path/test`) or directly in `path`.

    Raises:
        UserError: a folder is absent, holds no classes, an empty class, or a class that training
            does not have.
    """
    assert spec.path is not None
    root = _existing_folder(spec.path, setting="data.path")
    train_folder, test_folder = root, None
    if (root / "train").is_dir():
        train_folder = root / "train"
        test_folder = root / "test" if (root / "test").is_dir() else None
    if spec.test_path is not None:
        test_folder = _existing_folder(spec.test_path, setting="data.test_path")
        if test_folder.resolve().is_relative_to(train_folder.resolve()):
            raise UserError(
                f"data.test_path: {test_folder} lies in the training folder {train_folder}: "
                "keep test images elsewhere"
            )

    class_names = _subfolders(train_folder)
    if not class_names:
        raise UserError(f"data.path: {train_folder} holds no class folders")
    for class_name in class_names:
        if not _image_files(train_folder / class_name):
            raise UserError(
                f"data.path: class folder {train_folder / class_name} holds no images "
                f"({', '.join(IMAGE_EXTENSIONS)}): add some or remove it"
            )
    if test_folder is not None:
        unknown = [name for name in _subfolders(test_folder) if name not in class_names]
        if unknown:
            raise UserError(
                f"{test_folder / unknown[0]}: class {unknown[0]!r} has no training images in "
                f"{train_folder}: test classes must be among {_listed(class_names)}"
            )
    return RawData(
        train=_folder_images(train_folder, class_names),
        test=None if test_folder is None else _folder_images(test_folder, class_names),
        class_names=tuple(class_names),
    )


SOURCES: dict[str, Callable[[DataSpec], RawData]] = {
    "digits": read_digits,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "imagefolder": read_imagefolder,
    "parquet": read_parquet,
}


def _existing_folder(location: str, *, setting: str) -> Path:
    if "://" in location:
        raise UserError(
            f"{setting}: imagefolder reads local folders, not {location}: mount it, or use "
            "data.source 'parquet'"
        )
    folder = Path(location)
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{setting}: {folder} {problem}: name a folder with one folder per class")
    return folder


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def _folder_images(folder: Path, class_names: list[str]) -> RawImages:
    """The images of all classes, numbered in the order of class, then path."""
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        of_class = _image_files(folder / class_name)
        files += of_class
        labels += [label] * len(of_class)
    stored = FolderFiles(
        folder.absolute(), pa.array([str(path.relative_to(folder)) for path in files])
    )
    return RawImages(
        labels=np.asarray(labels, dtype=np.int64),
        name=stored.name,
        read=lambda positions: stored.reader(positions).read(),
        stored=stored,
    )


def _image_files(folder: Path) -> list[Path]:
    """Image files at any depth, sorted by path; hidden files are left out."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(IMAGE_EXTENSIONS) and name[0] != "."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:10])}, ..."

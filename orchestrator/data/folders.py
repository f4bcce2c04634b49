"""Image folders: one folder per class, as torchvision's ImageFolder reads them, local or behind any
URI of pyarrow.fs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
from pyarrow.fs import FileType

from orchestrator.data.folder_files import FolderFiles
from orchestrator.data.raw import Integers, RawData, RawImage, RawImages
from orchestrator.data.remote import RemotePath, open_uri
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

AnyFolder: TypeAlias = Path | RemotePath

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


def read_imagefolder(spec: DataSpec) -> RawData:
    """One folder per class, in `path/train` (and `path/test`) or directly in `path`.

    Raises:
        UserError: a folder is absent, holds no classes, an empty class, or a class that training
            does not have.
    """
    assert spec.path is not None
    root = _class_parent(spec.path, setting="data.path")
    train_folder: AnyFolder = root
    test_folder: AnyFolder | None = None
    if (root / "train").is_dir():
        train_folder = root / "train"
        test_folder = root / "test" if (root / "test").is_dir() else None
    if spec.test_path is not None:
        test_folder = _class_parent(spec.test_path, setting="data.test_path")
        if _lies_in(test_folder, train_folder):
            raise UserError(
                f"data.test_path: {test_folder} lies in the training folder {train_folder}: "
                "keep test images elsewhere"
            )
    return _read(train_folder, test_folder)


def read_imagenet(spec: DataSpec) -> RawData:
    """ImageNet's usual layout, `path/train/WNID/*.JPEG` and `path/val/WNID/*.JPEG`.

    The labels of its test images were never published: the images in `val` are the test split.

    Raises:
        UserError: as `read_imagefolder`, or `val` is flat, as it is distributed.
    """
    assert spec.path is not None
    root = _find_folder(spec.path, setting="data.path", source="imagenet")
    for name in ("train", "val"):
        if not (root / name).is_dir():
            raise UserError(
                f"data.path: {root / name} does not exist: imagenet is a folder with train and val "
                "inside, and in either one folder per class"
            )
    _check_not_flat(root / "val")
    return _read(root / "train", root / "val")


def local_folder(location: str, *, setting: str, source: str) -> Path:
    """The folder at a path, which must exist.

    Args:
        location: path or ``file://`` URI.
        setting: that gave it, for messages.
        source: what is read from it, for messages.

    Raises:
        UserError: it is another URI, a file, or not there.
    """
    folder = _local_path(location)
    if folder is None:
        raise UserError(
            f"{setting}: {source} reads local folders, not {location}: mount it, or use "
            "data.source 'imagefolder' or 'parquet'"
        )
    _check_folder(folder, setting=setting, source=source)
    return folder


def files_as_images(files: Sequence[Path], labels: Sequence[int]) -> RawImages:
    """Encoded files and their labels, in this order."""

    def read(positions: Integers) -> Iterator[RawImage]:
        return (files[position] for position in positions)

    return RawImages(
        labels=np.asarray(labels, dtype=np.int64),
        name=lambda position: str(files[position]),
        read=read,
    )


def image_files(folder: Path) -> list[Path]:
    """Image files at any depth, sorted by path; hidden files are left out."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if _is_image(name)
    )


def _local_path(location: str) -> Path | None:
    if location.startswith("file://"):
        return Path(unquote(urlsplit(location).path))
    return None if "://" in location else Path(location)


def _find_folder(location: str, *, setting: str, source: str) -> AnyFolder:
    """As `local_folder`, but behind any URI."""
    folder = _local_path(location) or open_uri(location, setting=setting)
    _check_folder(folder, setting=setting, source=source)
    return folder


def _check_folder(folder: AnyFolder, *, setting: str, source: str) -> None:
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{setting}: {folder} {problem}: name the folder that {source} is in")


def _lies_in(inner: AnyFolder, outer: AnyFolder) -> bool:
    if isinstance(inner, Path) and isinstance(outer, Path):
        return inner.resolve().is_relative_to(outer.resolve())
    if isinstance(inner, RemotePath) and isinstance(outer, RemotePath):
        return inner.lies_in(outer)
    return False


def _check_not_flat(val: AnyFolder) -> None:
    if not _subfolders(val) and any(_is_image(name) for name, _ in _entries(val)):
        raise UserError(
            f"data.path: {val} holds images and no class folders, as ImageNet is distributed: move "
            "each into the folder of its class, val/WNID/, as the usual script (valprep.sh) does"
        )


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS) and name[0] != "."


def _class_parent(location: str, *, setting: str) -> AnyFolder:
    return _find_folder(location, setting=setting, source="imagefolder")


def _read(train_folder: AnyFolder, test_folder: AnyFolder | None) -> RawData:
    class_names = _subfolders(train_folder)
    if not class_names:
        raise UserError(f"data.path: {train_folder} holds no class folders")
    if test_folder is not None:
        unknown = [name for name in _subfolders(test_folder) if name not in class_names]
        if unknown:
            raise UserError(
                f"{test_folder / unknown[0]}: class {unknown[0]!r} has no training images in "
                f"{train_folder}: test classes must be among {_listed(class_names)}"
            )
    train = _folder_images(train_folder, class_names)
    empty = np.setdiff1d(np.arange(len(class_names)), train.labels)
    if empty.size:
        raise UserError(
            f"data.path: class folder {train_folder / class_names[empty[0]]} holds no images "
            f"({', '.join(IMAGE_EXTENSIONS)}): add some or remove it"
        )
    return RawData(
        train=train,
        test=None if test_folder is None else _folder_images(test_folder, class_names),
        class_names=tuple(class_names),
    )


def _subfolders(folder: AnyFolder) -> list[str]:
    return sorted(name for name, is_folder in _entries(folder) if is_folder and name[0] != ".")


def _entries(folder: AnyFolder) -> list[tuple[str, bool]]:
    """The name of each entry, and whether it is a folder."""
    if isinstance(folder, Path):
        return [(entry.name, entry.is_dir()) for entry in folder.iterdir()]
    found = folder.entries(recursive=False)
    return [(entry.base_name, entry.type == FileType.Directory) for entry in found]


def _folder_images(folder: AnyFolder, class_names: list[str]) -> RawImages:
    """The images of all classes, numbered in the order of class, then path."""
    if isinstance(folder, Path):
        names = [
            str(path.relative_to(folder))
            for class_name in class_names
            for path in image_files(folder / class_name)
        ]
        stored = FolderFiles(folder.absolute(), pa.array(names, pa.string()))
    else:
        size_of = _remote_images(folder, class_names)
        names = list(size_of)
        sizes = np.array(list(size_of.values()), dtype=np.int64)
        stored = FolderFiles(folder, pa.array(names, pa.string()), sizes)
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    return RawImages(
        labels=np.array([label_of[name.partition("/")[0]] for name in names], dtype=np.int64),
        name=stored.name,
        read=lambda positions: stored.reader(positions).read(),
        stored=stored,
    )


def _remote_images(folder: RemotePath, class_names: list[str]) -> dict[str, int]:
    """Bytes of each image by its path below the folder, in the order of class, then path.

    All are listed at once: an object store lists a thousand files in the time of a small class.
    """
    size_of = {
        folder.name_below(entry): entry.size
        for entry in folder.entries(recursive=True)
        if entry.is_file and _is_image(entry.base_name)
    }
    classes = frozenset(class_names)
    in_classes = [name for name in size_of if "/" in name and name.partition("/")[0] in classes]
    # By parts, as paths are: "a/b" comes before "a-b".
    return {name: size_of[name] for name in sorted(in_classes, key=lambda name: name.split("/"))}


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:10])}, ..."

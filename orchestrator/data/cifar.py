"""CIFAR-10 and CIFAR-100 in the layouts that torchvision keeps on disk."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchestrator.data.download import find_or_fetch, local_root
from orchestrator.data.raw import Integers, Pixels, RawData, RawImage, RawImages
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec


class _Layout(NamedTuple):
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    label_key: str
    meta_file: str
    names_key: str


_LAYOUTS = {
    "cifar10": _Layout(
        folder="cifar-10-batches-py",
        train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test_files=("test_batch",),
        label_key="labels",
        meta_file="batches.meta",
        names_key="label_names",
    ),
    "cifar100": _Layout(
        folder="cifar-100-python",
        train_files=("train",),
        test_files=("test",),
        label_key="fine_labels",
        meta_file="meta",
        names_key="fine_label_names",
    ),
}
_VALUES_PER_IMAGE = 3 * 32 * 32


def read_cifar(spec: DataSpec) -> RawData:
    """Both splits of the data set that `spec.source` names.

    Raises:
        UserError: files are absent (and not to be downloaded), damaged, or hold other than arrays.
    """
    layout, root = _LAYOUTS[spec.source], local_root(spec)
    folder = root / layout.folder
    files = (*layout.train_files, *layout.test_files, layout.meta_file)
    find_or_fetch(spec, root=root, folder=folder, files=files)
    names = _field(_unpickle(folder / layout.meta_file), layout.names_key, folder)
    return RawData(
        train=_read_split(folder, layout.train_files, layout.label_key),
        test=_read_split(folder, layout.test_files, layout.label_key),
        class_names=tuple(str(name) for name in names),
    )


def _read_split(folder: Path, files: tuple[str, ...], label_key: str) -> RawImages:
    images, labels, starts = [], [], [0]
    for name in files:
        batch = _unpickle(folder / name)
        pixels = np.asarray(_field(batch, "data", folder / name))
        classes = np.asarray(_field(batch, label_key, folder / name))
        if (
            pixels.dtype != np.uint8
            or pixels.shape != (len(classes), _VALUES_PER_IMAGE)
            or classes.dtype.kind != "i"
        ):
            raise UserError(
                f"{folder / name}: expected one row of {_VALUES_PER_IMAGE} uint8 values and one "
                f"integer label per image, found {pixels.dtype} {pixels.shape} and "
                f"{classes.dtype} {classes.shape}: fetch the file again"
            )
        images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # (n, H, W, C)
        labels.append(classes)
        starts.append(starts[-1] + len(classes))
    pixels_of_all: Pixels = np.concatenate(images)

    def name_of(position: int) -> str:
        file = int(np.searchsorted(starts, position, side="right")) - 1
        return f"{files[file]} image {position - starts[file]}"

    def read(positions: Integers) -> Iterator[RawImage]:
        return (pixels_of_all[position] for position in positions)

    return RawImages(labels=np.concatenate(labels), name=name_of, read=read)


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers and refuses everything else a pickle can name."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise ValueError(f"it names {module}.{name}, which is no part of CIFAR")


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except (
        OSError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:  # what a damaged pickle may raise
        raise UserError(f"{path}: not a CIFAR file ({error}): fetch it again") from error


def _field(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{path}: not a CIFAR file (no {key!r} in it): fetch it again")
    return content[key]

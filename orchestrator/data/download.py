"""Fetching what torchvision can fetch: when asked, once per folder, whole or not at all."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

logger = logging.getLogger(__name__)


def local_root(spec: DataSpec) -> Path:
    """The folder that torchvision would be given as root; it need not exist.

    Raises:
        UserError: it is a URI.
    """
    assert spec.path is not None
    if "://" in spec.path:
        raise UserError(f"data.path: {spec.source} is read from a local folder, not {spec.path}")
    return Path(spec.path)


def find_or_fetch(spec: DataSpec, *, root: Path, folder: Path, files: Sequence[str]) -> None:
    """Have a data set's files on disk.

    Processes that find files missing fetch one after the other, and those that had to wait find
    them there. torchvision compares the archive's checksum and shows a bar; what it unpacks
    becomes visible when all of it is there.

    Args:
        spec: whose `source` is wanted, and which says whether it may be fetched.
        root: what torchvision takes as the root of its layout.
        folder: in it, where the files lie.
        files: names that must be there.

    Raises:
        UserError: they are not there and are not to be, or cannot be, fetched.
    """
    if not _missing(folder, files):
        return
    if not spec.download:
        missing = ", ".join(_missing(folder, files))
        raise UserError(
            f"data.path: {folder} lacks {missing}: put torchvision's {spec.source} layout there, "
            "or set data.download: true"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{spec.source}.lock", waiting_for=spec.source):
            if _missing(folder, files):
                _fetch(spec.source, root, folder)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.download: {_fetchers()[spec.source].__name__} could not be fetched ({reason}): "
            f"put its files in {folder}"
        ) from error
    if missing_still := _missing(folder, files):
        raise UserError(f"data.download: what was fetched has no {missing_still[0]}: {folder}")


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    return [name for name in files if not (folder / name).is_file()]


def _fetch(source: str, root: Path, folder: Path) -> None:
    """Fetch and unpack beside the place, then move the files there."""
    scratch = root / f".{source}.part"
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    logger.info("fetching %s into %s", source, folder)
    try:
        _fetchers()[source](str(scratch), download=True)
        unpacked = scratch / folder.relative_to(root)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(unpacked.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetchers() -> dict[str, Callable[..., Any]]:
    """torchvision's classes by source; it takes a second to import."""
    from torchvision import datasets

    return {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "stl10": datasets.STL10,
        "fashion_mnist": datasets.FashionMNIST,
    }


@contextmanager
def _alone(lock: Path, *, waiting_for: str) -> Iterator[None]:
    """Hold a lock that goes with the process."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("waiting for another process that fetches %s", waiting_for)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

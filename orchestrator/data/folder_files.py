"""Image files below a folder, for any process to read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from orchestrator.data.raw import Integers, RawImage
from orchestrator.data.remote import RemotePath


@dataclass(frozen=True)
class FolderFiles:
    """The image files of a folder, each of which is read alone."""

    folder: Path | RemotePath
    """Absolute: workers may be elsewhere."""
    names: pa.StringArray
    """Paths below the folder. In Arrow, a million of them take no more memory than their text, and
    none in a process that maps them."""
    sizes: Integers | None = None
    """(M,) bytes, where the listing told them; None where they are asked of the files, here."""

    @property
    def starts(self) -> Integers:
        """(M + 1,)."""
        return np.arange(len(self.names) + 1, dtype=np.int64)

    def name(self, position: int) -> str:
        """The path."""
        return str(self.folder / self.names[position].as_py())

    def reader(self, positions: Integers) -> FileReader:
        """Of the files at some positions, in any order."""
        return FileReader(self.folder, self.names.take(pa.array(positions)))

    def digest(self) -> str:
        """Of the files' paths and sizes."""
        digest = hashlib.sha256()
        for position, name in enumerate(self.names.to_pylist()):
            digest.update(f"{name} {self._size(position, name)} ".encode())
        return digest.hexdigest()

    def _size(self, position: int, name: str) -> int:
        if self.sizes is not None:
            return int(self.sizes[position])
        assert isinstance(self.folder, Path)
        return (self.folder / name).stat().st_size


@dataclass(frozen=True)
class FileReader:
    """Hands over some files in any process."""

    folder: Path | RemotePath
    names: pa.StringArray

    def read(self) -> Iterator[RawImage]:
        """The files, in order."""
        return (self.folder / name for name in self.names.to_pylist())

"""The encoded images of Parquet files, read by row group."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from orchestrator.data.raw import Integers, RawImage
from orchestrator.errors import UserError

_ROWS_AT_ONCE = 32
_BUFFER_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Shards:
    """Parquet files of one split, in order."""

    filesystem: FileSystem
    paths: tuple[str, ...]


@dataclass(frozen=True)
class RowGroups:
    """The images of all shards, in the row groups that they were written in.

    P: row groups that are not empty.
    """

    shards: Shards
    column: str
    file_sizes: tuple[int, ...]
    """Bytes of each shard."""
    shard_of: Integers
    """(P,) shard of each row group, ascending."""
    group_of: Integers
    """(P,) its number in the shard."""
    starts: Integers
    """(P + 1,) position of its first row, and the end."""

    def name(self, position: int) -> str:
        """Shard and row."""
        shard = self.shard_of[np.searchsorted(self.starts, position, side="right") - 1]
        first = self.starts[np.searchsorted(self.shard_of, shard)]
        return f"{base_name(self.shards.paths[shard])} row {position - first}"

    def reader(self, positions: Integers) -> RowReader:
        """Of the images at some positions, those of a row group together and ascending."""
        parts = np.searchsorted(self.starts, positions, side="right") - 1  # (n,)
        edges = np.flatnonzero(np.diff(parts, prepend=-1, append=-1))  # (runs + 1,)
        runs = []
        for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            part = parts[first]
            path = self.shards.paths[self.shard_of[part]]
            rows = positions[first:end] - self.starts[part]
            runs.append(Run(path, int(self.group_of[part]), rows))
        return RowReader(self.shards.filesystem, tuple(runs), self.column)

    def digest(self) -> str:
        """Of the shards' names, sizes and row groups."""
        digest = hashlib.sha256(self.column.encode())
        for path, size in zip(self.shards.paths, self.file_sizes, strict=True):
            digest.update(f"{base_name(path)} {size} ".encode())
        digest.update(self.starts.tobytes())
        return digest.hexdigest()


class Run(NamedTuple):
    """Some rows of a row group."""

    path: str
    group: int
    """Number of the row group in its file."""
    rows: Integers
    """(n,) ascending, counted from the row group's first."""


@dataclass(frozen=True)
class RowReader:
    """Reads the images of some runs in any process."""

    filesystem: FileSystem
    runs: tuple[Run, ...]
    column: str

    def read(self) -> Iterator[RawImage]:
        """The images, in order.

        Raises:
            UserError: a file cannot be read.
        """
        for path, runs in groupby(self.runs, key=lambda run: run.path):
            with opened(self.filesystem, path) as file:
                for run in runs:
                    yield from _read_run(file, run, self.column)


def _read_run(file: pq.ParquetFile, run: Run, column: str) -> Iterator[RawImage]:
    """The images of a run, few of its row group in memory at a time."""
    start = 0
    batches = file.iter_batches(
        batch_size=_ROWS_AT_ONCE, row_groups=[run.group], columns=[column], use_threads=False
    )
    for batch in batches:
        end = start + len(batch)
        for row in run.rows[slice(*np.searchsorted(run.rows, (start, end)))].tolist():
            image = batch.column(0)[row - start].as_py()
            yield _struct_image(image) if isinstance(image, dict) else image
        if end > run.rows[-1]:
            return
        start = end


def _struct_image(image: dict[str, Any]) -> RawImage:
    """The bytes, or the file that is meant where Hugging Face datasets has not embedded them."""
    content, path = image["bytes"], image.get("path")
    return Path(path) if content is None and path else content


@contextmanager
def opened(filesystem: FileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file; what goes wrong with it is the user's to know."""
    with (
        reading(path, "data"),
        filesystem.open_input_file(path) as stream,
        # Or the images of a row group would be in memory as a whole.
        pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
    ):
        yield file


@contextmanager
def reading(location: str, setting: str) -> Iterator[None]:
    """Turn what pyarrow raises into a sentence that names the setting."""
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's own errors are one of the two
        reason = " ".join(str(error).split())
        raise UserError(f"{setting}: {location} cannot be read as Parquet ({reason})") from error


def base_name(path: str) -> str:
    """Without its folders."""
    return path.rsplit("/", 1)[-1]

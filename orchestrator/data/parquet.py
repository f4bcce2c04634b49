"""Parquet with encoded image bytes and integer labels, local or behind any URI of pyarrow.fs.

Rows are numbered from 0 over all shards, which are sorted by path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from orchestrator.data.raw import Integers, RawData, RawImage, RawImages
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec


@dataclass(frozen=True)
class _Shards:
    """Parquet files of one split, in order."""

    filesystem: FileSystem
    paths: tuple[str, ...]


def read_parquet(spec: DataSpec) -> RawData:
    """Labels of all shards now, images when they are asked for.

    Raises:
        UserError: no file, not Parquet, a missing or unusable column, or a null label.
    """
    assert spec.path is not None
    train = _find_shards(spec.path, setting="data.path")
    _check_one_split(train, spec.path, setting="data.path")
    test = None
    if spec.test_path is not None:
        test = _find_shards(spec.test_path, setting="data.test_path")
        _check_one_split(test, spec.test_path, setting="data.test_path")
        shared = sorted(set(train.paths) & set(test.paths))
        if shared:
            raise UserError(
                f"data.path and data.test_path both hold {shared[0]}: narrow data.path, for "
                "example to a glob such as train-*.parquet"
            )
    return RawData(
        train=_labelled_images(train, spec),
        test=None if test is None else _labelled_images(test, spec),
        class_names=_class_names(train, spec.label_column),
    )


def _find_shards(location: str, *, setting: str) -> _Shards:
    """The files that a file, folder, glob or URI of one of them stands for."""
    parts = location.split("/")
    first_glob = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    if Path(location).exists():  # brackets may be part of a name
        first_glob = len(parts)
    base, pattern = "/".join(parts[:first_glob]), parts[first_glob:]
    base = base or ("/" if location.startswith("/") else ".")
    with _reading(location, setting):
        if "://" in location:
            filesystem, root = FileSystem.from_uri(base)
        else:
            filesystem, root = LocalFileSystem(), str(Path(base).absolute())
        info = filesystem.get_file_info(root)
        if info.type == FileType.NotFound:
            raise UserError(f"{setting}: {base} does not exist")
        if info.is_file:
            return _Shards(filesystem, (info.path,))
        listing = filesystem.get_file_info(FileSelector(root, recursive=len(pattern) > 1))
    paths = [found.path for found in listing if _is_shard(found, root, pattern)]
    if not paths:
        raise UserError(f"{setting}: {location} holds no .parquet file")
    return _Shards(filesystem, tuple(sorted(paths)))


def _check_one_split(shards: _Shards, location: str, *, setting: str) -> None:
    """Refuse to mix the splits of one folder, which Hugging Face tells by the files' names."""
    starts = {_base_name(path).partition("-")[0] for path in shards.paths}
    mixed = sorted(starts & {"train", "validation", "test"})
    if len(mixed) > 1:
        raise UserError(
            f"{setting}: {location} holds shards of {' and '.join(mixed)}: narrow it to a glob, "
            "such as train-*.parquet and, in data.test_path, test-*.parquet"
        )


def _is_shard(found: FileInfo, root: str, pattern: list[str]) -> bool:
    if not found.is_file:
        return False
    if not pattern:
        return found.base_name.endswith(".parquet") and found.base_name[0] not in "._"
    parts = found.path.removeprefix(root).strip("/").split("/")
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))


def _labelled_images(shards: _Shards, spec: DataSpec) -> RawImages:
    labels = [_read_labels(shards.filesystem, path, spec) for path in shards.paths]
    starts = np.cumsum([0, *(len(part) for part in labels)])  # (shards + 1,)

    def name(position: int) -> str:
        shard = int(np.searchsorted(starts, position, side="right")) - 1
        return f"{_base_name(shards.paths[shard])} row {position - starts[shard]}"

    def read(positions: Integers) -> Iterator[RawImage]:
        for shard, path in enumerate(shards.paths):
            inside = (positions >= starts[shard]) & (positions < starts[shard + 1])
            rows = positions[inside] - starts[shard]
            if rows.size:
                yield from _read_images(shards.filesystem, path, rows, spec.image_column)

    return RawImages(labels=np.concatenate(labels), name=name, read=read)


def _read_labels(filesystem: FileSystem, path: str, spec: DataSpec) -> Integers:
    """(rows,) of one shard, its columns checked."""
    with _opened(filesystem, path) as file:
        schema = file.schema_arrow
        for setting, column in (
            ("image_column", spec.image_column),
            ("label_column", spec.label_column),
        ):
            if column not in schema.names:
                raise UserError(
                    f"{path}: no column {column!r}: set data.{setting} to one of "
                    f"{', '.join(schema.names)}"
                )
        image_type = schema.field(spec.image_column).type
        if not _holds_bytes(image_type):
            raise UserError(
                f"{path}: column {spec.image_column!r} holds {image_type}, not encoded image "
                "bytes (binary): set data.image_column"
            )
        label_type = schema.field(spec.label_column).type
        if not pa.types.is_integer(label_type):
            raise UserError(
                f"{path}: column {spec.label_column!r} holds {label_type}, not integer labels "
                "0, 1, ...: set data.label_column or convert it"
            )
        labels = file.read(columns=[spec.label_column]).column(0)
        if labels.null_count:
            row = int(np.flatnonzero(labels.is_null().to_numpy())[0])
            raise UserError(f"{_base_name(path)} row {row}: the label is null; give it a class")
        integers: Integers = labels.cast(pa.int64()).to_numpy()
        return integers


def _read_images(
    filesystem: FileSystem, path: str, rows: Integers, column: str
) -> Iterator[RawImage]:
    """The encoded images at ascending rows of one shard, one row group in memory at a time."""
    with _opened(filesystem, path) as file:
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            wanted = rows[(rows >= start) & (rows < stop)] - start
            start = stop
            if wanted.size:
                images = file.read_row_group(group, columns=[column]).column(0)
                for row in wanted.tolist():
                    image = images[row].as_py()
                    yield _struct_image(image) if isinstance(image, dict) else image


def _struct_image(image: dict[str, Any]) -> RawImage:
    """The bytes, or the file that is meant where Hugging Face datasets has not embedded them."""
    content, path = image["bytes"], image.get("path")
    return Path(path) if content is None and path else content


def _holds_bytes(image_type: pa.DataType) -> bool:
    """Binary, or the struct of bytes and path that Hugging Face datasets writes."""
    if pa.types.is_struct(image_type):
        position = image_type.get_field_index("bytes")
        return position >= 0 and _holds_bytes(image_type.field(position).type)
    return bool(pa.types.is_binary(image_type) or pa.types.is_large_binary(image_type))


def _class_names(shards: _Shards, label_column: str) -> tuple[str, ...] | None:
    """From the first schema's metadata: `classes`, or the ClassLabel of Hugging Face datasets."""
    path = shards.paths[0]
    with _opened(shards.filesystem, path) as file:
        metadata = file.schema_arrow.metadata or {}
        if b"classes" in metadata:
            text = metadata[b"classes"].decode(errors="replace")
            names = _json(text) if text.lstrip().startswith("[") else text.split(",")
            if not isinstance(names, list):
                raise UserError(
                    f"{path}: the schema's metadata `classes` is neither a JSON list of names nor "
                    f"names between commas: {text[:60]!r}"
                )
        else:
            names = _json(metadata.get(b"huggingface", b"null").decode(errors="replace"))
            for key in ("info", "features", label_column, "names"):
                names = names.get(key) if isinstance(names, dict) else None
        # What other programs write under their own key is no reason to refuse.
        return tuple(str(name).strip() for name in names) if isinstance(names, list) else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


@contextmanager
def _opened(filesystem: FileSystem, path: str) -> Iterator[pq.ParquetFile]:
    with (
        _reading(path, "data"),
        filesystem.open_input_file(path) as stream,
        pq.ParquetFile(stream) as file,
    ):
        yield file


@contextmanager
def _reading(location: str, setting: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's own errors are one of the two
        reason = " ".join(str(error).split())
        raise UserError(f"{setting}: {location} cannot be read as Parquet ({reason})") from error


def _base_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]

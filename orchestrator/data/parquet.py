"""Parquet with encoded image bytes and integer labels, local or behind any URI of pyarrow.fs.

Rows are numbered from 0 over all shards, which are sorted by path.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from orchestrator.data.raw import Integers, RawData, RawImages
from orchestrator.data.row_groups import RowGroups, Shards, base_name, opened, reading
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec


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


def _find_shards(location: str, *, setting: str) -> Shards:
    """The files that a file, folder, glob or URI of one of them stands for."""
    parts = location.split("/")
    first_glob = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    if Path(location).exists():  # brackets may be part of a name
        first_glob = len(parts)
    base, pattern = "/".join(parts[:first_glob]), parts[first_glob:]
    base = base or ("/" if location.startswith("/") else ".")
    with reading(location, setting):
        if "://" in location:
            filesystem, root = FileSystem.from_uri(base)
        else:
            filesystem, root = LocalFileSystem(), str(Path(base).absolute())
        info = filesystem.get_file_info(root)
        if info.type == FileType.NotFound:
            raise UserError(f"{setting}: {base} does not exist")
        if info.is_file:
            return Shards(filesystem, (info.path,))
        listing = filesystem.get_file_info(FileSelector(root, recursive=len(pattern) > 1))
    paths = [found.path for found in listing if _is_shard(found, root, pattern)]
    if not paths:
        raise UserError(f"{setting}: {location} holds no .parquet file")
    return Shards(filesystem, tuple(sorted(paths)))


def _check_one_split(shards: Shards, location: str, *, setting: str) -> None:
    """Refuse to mix the splits of one folder, which Hugging Face tells by the files' names."""
    starts = {base_name(path).partition("-")[0] for path in shards.paths}
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


def _labelled_images(shards: Shards, spec: DataSpec) -> RawImages:
    """Labels of all shards; their images when they are asked for."""
    labels, file_sizes, shard_of, group_of, group_sizes = [], [], [], [], []
    for shard, path in enumerate(shards.paths):
        with opened(shards.filesystem, path) as file:
            labels.append(_read_labels(file, path, spec))
            metadata = file.metadata
            sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        file_sizes.append(shards.filesystem.get_file_info(path).size)
        kept = [group for group, size in enumerate(sizes) if size]
        shard_of += [shard] * len(kept)
        group_of += kept
        group_sizes += [sizes[group] for group in kept]
    groups = RowGroups(
        shards=shards,
        column=spec.image_column,
        file_sizes=tuple(file_sizes),
        shard_of=np.asarray(shard_of, dtype=np.int64),
        group_of=np.asarray(group_of, dtype=np.int64),
        starts=np.cumsum([0, *group_sizes], dtype=np.int64),
    )
    return RawImages(
        labels=np.concatenate(labels),
        name=groups.name,
        read=lambda positions: groups.reader(positions).read(),
        stored=groups,
    )


def _read_labels(file: pq.ParquetFile, path: str, spec: DataSpec) -> Integers:
    """(rows,) of one shard, its columns checked."""
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
        raise UserError(f"{base_name(path)} row {row}: the label is null; give it a class")
    integers: Integers = labels.cast(pa.int64()).to_numpy()
    return integers


def _holds_bytes(image_type: pa.DataType) -> bool:
    """Binary, or the struct of bytes and path that Hugging Face datasets writes."""
    if pa.types.is_struct(image_type):
        position = image_type.get_field_index("bytes")
        return position >= 0 and _holds_bytes(image_type.field(position).type)
    return bool(pa.types.is_binary(image_type) or pa.types.is_large_binary(image_type))


def _class_names(shards: Shards, label_column: str) -> tuple[str, ...] | None:
    """From the first schema's metadata: `classes`, or the ClassLabel of Hugging Face datasets."""
    path = shards.paths[0]
    with opened(shards.filesystem, path) as file:
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

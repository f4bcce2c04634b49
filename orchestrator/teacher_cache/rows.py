"""A piece of the cache: some images' answers as one Arrow IPC file, read in place.

Shape letters: m images of the piece, K classes, D feature dimensions.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_DTYPE = b"dcd.dtype"
# The checksum is of the whole file, with zeros in its own place. Arrow writes the schema, and so
# the checksum, at the beginning and at the end.
_MARK, _ZEROS = b"dcd.crc32=", b"00000000"
_MARGIN = 8192
"""So far from either end the checksum is looked for."""


class Damaged(Exception):
    """A file is not what was written."""


class Rows(NamedTuple):
    """The teacher's answers to some images, in the precision that is kept."""

    positions: Tensor  # (m,) int64, of the images in the training split
    logits: Tensor  # (m, K)
    features: Tensor  # (m, D)


def encode(rows: Rows, about: Mapping[bytes, bytes]) -> bytes:
    """The content of a file.

    Args:
        rows: on the CPU, logits and features of one dtype.
        about: what the file is, which `decode` wants to find again.
    """
    positions, logits, features = (_as_numpy(tensor) for tensor in rows)
    arrays = [pa.array(positions), _lists(logits), _lists(features)]
    names = {dtype: name for name, dtype in DTYPES.items()}
    metadata = {**about, _DTYPE: names[rows.logits.dtype].encode(), b"checksum": _MARK + _ZEROS}
    schema = pa.schema(
        [(name, array.type) for name, array in zip(Rows._fields, arrays, strict=True)], metadata
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    content = bytearray(sink.getvalue())
    checksum = f"{zlib.crc32(content):08x}".encode()
    for start in _checksum_places(memoryview(content)):
        content[start : start + len(_ZEROS)] = checksum
    return bytes(content)


def decode(source: Path | bytes, about: Mapping[bytes, bytes]) -> Rows:
    """Check a file and give its rows, which lie where the file does.

    Args:
        source: a file, which is mapped into memory as long as somebody holds the rows, or its
            content.
        about: as in `encode`.

    Raises:
        Damaged: it is torn, altered, or about something else.
        OSError: it is not there, or cannot be read.
    """
    path = str(source) if isinstance(source, Path) else "what was fetched"
    if isinstance(source, Path):
        if source.stat().st_size == 0:
            raise Damaged(f"{path} is empty")
        with pa.memory_map(path) as opened:
            buffer = opened.read_buffer()
    else:
        buffer = pa.py_buffer(source)
    # Before anything is believed of it: Arrow takes a damaged schema at its word.
    _check(memoryview(buffer), path)
    try:
        reader = pa.ipc.open_file(buffer)
        metadata = reader.schema.metadata or {}
        if any(metadata.get(key) != value for key, value in about.items()):
            raise Damaged(f"{path} is about something else")
        dtype = DTYPES[metadata[_DTYPE].decode()]
        batch = reader.get_batch(0)
        positions = batch.column(0).to_numpy(zero_copy_only=True)
        logits, features = (
            column.values.to_numpy(zero_copy_only=True).reshape(
                len(positions), column.type.list_size
            )
            for column in batch.columns[1:]
        )
    except (pa.ArrowException, LookupError, ValueError, AttributeError) as error:
        raise Damaged(f"{path} is no file of this cache: {error}") from error
    return Rows(from_dlpack(positions), _as_tensor(logits, dtype), _as_tensor(features, dtype))


def _check(content: memoryview, path: str) -> None:
    places = _checksum_places(content)
    if len(places) != 2:
        raise Damaged(f"{path} is torn: its checksum is not where it should be")
    found = {bytes(content[start : start + len(_ZEROS)]) for start in places}
    checksum, done = 0, 0
    for start in places:
        checksum = zlib.crc32(_ZEROS, zlib.crc32(content[done:start], checksum))
        done = start + len(_ZEROS)
    checksum = zlib.crc32(content[done:], checksum)
    if found != {f"{checksum:08x}".encode()}:
        raise Damaged(f"{path} is damaged: its checksum does not match")


def _checksum_places(content: memoryview) -> list[int]:
    """Where the checksum stands: once in the schema at the beginning, once in that at the end."""
    head, tail = bytes(content[:_MARGIN]), bytes(content[-_MARGIN:])
    first, last = head.find(_MARK), tail.rfind(_MARK)
    if first < 0 or last < 0:
        return []
    starts = {first + len(_MARK), len(content) - len(tail) + last + len(_MARK)}
    return sorted(starts)


def _as_numpy(tensor: Tensor) -> npt.NDArray[np.generic]:
    if tensor.dtype == torch.bfloat16:  # Arrow has none: the same bits as integers
        tensor = tensor.view(torch.uint16)
    array: npt.NDArray[np.generic] = tensor.contiguous().numpy()
    return array


def _as_tensor(array: npt.NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    tensor: Tensor = from_dlpack(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def _lists(values: npt.NDArray[np.generic]) -> pa.Array:
    """One list of fixed size per row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

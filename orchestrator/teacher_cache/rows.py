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

_CHECKSUM = b"dcd.crc32"
_DTYPE = b"dcd.dtype"


class Damaged(Exception):
    """A file is not what was written."""


class Rows(NamedTuple):
    """The teacher's answers to some images, in the precision that is kept."""

    positions: Tensor  # (m,) int64, of the images in the training split
    logits: Tensor  # (m, K)
    features: Tensor  # (m, D)


def encode(rows: Rows, about: Mapping[bytes, bytes]) -> pa.Buffer:
    """The bytes of a file.

    Args:
        rows: on the CPU, logits and features of one dtype.
        about: what the file is, which `decode` wants to find again.
    """
    positions, logits, features = (_as_numpy(tensor) for tensor in rows)
    arrays = [pa.array(positions), _lists(logits), _lists(features)]
    names = {dtype: name for name, dtype in DTYPES.items()}
    metadata = {
        **about,
        _DTYPE: names[rows.logits.dtype].encode(),
        _CHECKSUM: _checksum(positions, logits, features),
    }
    schema = pa.schema(
        [(name, array.type) for name, array in zip(Rows._fields, arrays, strict=True)], metadata
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue()


def decode(source: Path | bytes, about: Mapping[bytes, bytes]) -> Rows:
    """Check a file and give its rows, which lie where the file does.

    Args:
        source: a file, which is mapped into memory as long as somebody holds the rows, or its
            content.
        about: as in `encode`.

    Raises:
        Damaged: it is torn, altered, or about something else.
        FileNotFoundError: there is none.
    """
    path = source if isinstance(source, Path) else "what was fetched"
    try:
        opened = pa.memory_map(str(source)) if isinstance(source, Path) else pa.BufferReader(source)
        with opened:
            reader = pa.ipc.open_file(opened)
            metadata = reader.schema.metadata or {}
            batch = reader.get_batch(0)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, IndexError) as error:
        raise Damaged(f"{path} is torn: {error}") from error
    if any(metadata.get(key) != value for key, value in about.items()):
        raise Damaged(f"{path} is about something else")
    positions = batch.column(0).to_numpy(zero_copy_only=True)
    logits, features = (
        column.values.to_numpy(zero_copy_only=True).reshape(len(positions), column.type.list_size)
        for column in batch.columns[1:]
    )
    if metadata.get(_CHECKSUM) != _checksum(positions, logits, features):
        raise Damaged(f"{path} is damaged: its checksum does not match")
    dtype = DTYPES[metadata[_DTYPE].decode()]
    return Rows(from_dlpack(positions), _as_tensor(logits, dtype), _as_tensor(features, dtype))


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


def _checksum(*arrays: npt.NDArray[np.generic]) -> bytes:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(array.data if array.size else b"", crc)
    return f"{crc:08x}".encode()

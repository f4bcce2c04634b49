"""Decoded images as Arrow tables, which travel between processes without a copy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.raw import Pixels
from orchestrator.data.reading import Failure, Rows, decode_task
from orchestrator.data.tasks import ImageForm, Task


def read_blocks(task: Task, form: ImageForm, block_bytes: int) -> Iterable[pa.Table]:
    """The images of a task as tables of so many bytes."""
    for rows in decode_task(task, form, threads=1, memory=2 * block_bytes):
        yield to_table(rows, form)


def to_table(rows: Rows, form: ImageForm) -> pa.Table:
    """Images first, then one row for each failure."""
    num_images, num_failures = len(rows.labels), len(rows.failures)
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(form.num_bytes), num_images, [None, pa.py_buffer(rows.images)]
    )
    nothing = [None] * num_failures
    return pa.table(
        {
            "image": pa.chunked_array([pixels, pa.array(nothing, pixels.type)]),
            "label": pa.array([*rows.labels.tolist(), *nothing], pa.int64()),
            "position": pa.array(
                [*rows.indices.tolist(), *(f.position for f in rows.failures)], pa.int64()
            ),
            "reason": pa.array(
                [None] * num_images + [f.reason for f in rows.failures], pa.string()
            ),
            "skippable": pa.array(
                [None] * num_images + [f.skippable for f in rows.failures], pa.bool_()
            ),
        }
    )


def from_table(table: pa.Table, form: ImageForm) -> Rows:
    """The images are the table's memory where that is in one piece."""
    is_image = table["reason"].is_null()
    failed = table.filter(pc.invert(is_image)).select(["position", "reason", "skippable"])
    failures = [Failure(**row) for row in failed.to_pylist()]
    good = table.filter(is_image) if failures else table
    chunks = [chunk for chunk in good["image"].chunks if len(chunk)]
    images = [_pixels(chunk, form) for chunk in chunks]
    return Rows(
        images[0]
        if len(images) == 1
        else np.concatenate([np.empty((0, *form.shape), dtype=np.uint8), *images]),
        good["label"].to_numpy(),
        good["position"].to_numpy(),
        failures,
    )


def _pixels(chunk: pa.FixedSizeBinaryArray, form: ImageForm) -> Pixels:
    """(n, C, H, W), in the array's memory, which may go on behind it."""
    _, buffer = chunk.buffers()
    size = form.num_bytes
    values = np.frombuffer(
        buffer, dtype=np.uint8, count=len(chunk) * size, offset=chunk.offset * size
    )
    return values.reshape(-1, *form.shape)

"""Ray Data around reading and decoding: in other processes, on any node, in bounded memory.

Each worker has a stream of its own over its own share of the tasks. Were there one stream for all,
which of its blocks a worker gets would depend on who asks first, and so would the order of images.

n: images of a block, C, H, W: channels, height, width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from orchestrator.data import StreamedSet
from orchestrator.data.reading import Failure, Rows, decode_task
from orchestrator.data.streamed import ImageForm, Task

_MAX_BLOCK_BYTES = 16 * 2**20
_BLOCKS_PER_MEMORY = 64  # of all that the images may take, so that those being made are few


def read_on_ray(tasks: Sequence[Task], split: StreamedSet, *, decoders: int) -> Iterator[Rows]:
    """Read and decode in Ray's worker processes, in order.

    Blocks on their way take a quarter of what the images may take, and those being made at most
    another.

    Args:
        tasks: what to read.
        split: what they are of.
        decoders: processes that decode at once. They ask Ray for no core: they share those of the
            worker that they decode for, which waits for them when they are slow.
    """
    if not tasks:
        return
    memory = split.memory
    decoders = max(1, min(decoders, 16))
    block_bytes = max(split.form.num_bytes, min(_MAX_BLOCK_BYTES, memory // _BLOCKS_PER_MEMORY))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    dataset = ray.data.read_datasource(
        _Images(tasks, split.form, block_bytes),
        num_cpus=0,
        concurrency=decoders,
        override_num_blocks=len(tasks),
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.target_max_block_size = block_bytes
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(object_store_memory=memory / 4)
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        yield _from_table(block, split.form)


class _Images(Datasource):
    """One of Ray's read tasks for each of ours."""

    def __init__(self, tasks: Sequence[Task], form: ImageForm, block_bytes: int) -> None:
        super().__init__()
        self._tasks = tasks
        self._form = form
        self._block_bytes = block_bytes

    def estimate_inmemory_data_size(self) -> int:
        return sum(len(task.labels) for task in self._tasks) * self._form.num_bytes

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_blocks, task, self._form, self._block_bytes),
                BlockMetadata(
                    num_rows=len(task.labels),
                    size_bytes=len(task.labels) * self._form.num_bytes,
                    exec_stats=None,
                    input_files=None,
                ),
            )
            for task in self._tasks
        ]


def _blocks(task: Task, form: ImageForm, block_bytes: int) -> Iterable[pa.Table]:
    for rows in decode_task(task, form, threads=1, memory=2 * block_bytes):
        yield _to_table(rows, form)


def _to_table(rows: Rows, form: ImageForm) -> pa.Table:
    """Images first, then one row for each failure."""
    num_images, num_failures = len(rows.labels), len(rows.failures)
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(form.num_bytes), num_images, [None, pa.py_buffer(rows.images)]
    )
    nothing = [None] * num_failures
    return pa.table(
        {
            "image": pa.concat_arrays([pixels, pa.array(nothing, pixels.type)]),
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


def _from_table(table: pa.Table, form: ImageForm) -> Rows:
    """The images are the table's memory where that is in one piece."""
    is_image = table["reason"].is_null()
    failed = table.filter(pa.compute.invert(is_image)).select(["position", "reason", "skippable"])
    failures = [Failure(**row) for row in failed.to_pylist()]
    good = table.filter(is_image) if failures else table
    chunks = [chunk for chunk in good["image"].chunks if len(chunk)]
    images = [
        np.frombuffer(chunk.buffers()[1], dtype=np.uint8).reshape(-1, *form.shape)[
            chunk.offset : chunk.offset + len(chunk)
        ]
        for chunk in chunks
    ]
    return Rows(
        images[0]
        if len(images) == 1
        else np.concatenate([np.empty((0, *form.shape), dtype=np.uint8), *images]),
        good["label"].to_numpy(),
        good["position"].to_numpy(),
        failures,
    )

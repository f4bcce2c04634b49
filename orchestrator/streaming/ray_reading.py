"""Ray Data around reading and decoding: in other processes, on any node, in bounded memory.

Each worker has a stream of its own over its own share of the tasks. Were there one stream for all,
which of its blocks a worker gets would depend on who asks first, and so would the order of images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from orchestrator.data import StreamedSet
from orchestrator.data.blocks import from_table, read_blocks
from orchestrator.data.reading import Rows
from orchestrator.data.tasks import ImageForm, Task

_MAX_BLOCK_BYTES = 8 * 2**20
_BLOCKS_PER_DECODER = 16
"""So many blocks of each decoder would take a quarter of what the images may. It has some copies of
one: decoded image by image, put together, handed to Ray's builder, and on its way to the store."""


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
    share = memory // 4 // decoders // _BLOCKS_PER_DECODER
    block_bytes = max(split.form.num_bytes, min(_MAX_BLOCK_BYTES, share))
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
        yield from_table(block, split.form)


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
                partial(read_blocks, task, self._form, self._block_bytes),
                BlockMetadata(
                    num_rows=len(task.labels),
                    size_bytes=len(task.labels) * self._form.num_bytes,
                    exec_stats=None,
                    input_files=None,
                ),
            )
            for task in self._tasks
        ]

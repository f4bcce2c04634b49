"""From a split of a data set to what the loop and the scores take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from orchestrator.data import Split, StreamedSet
from orchestrator.data.reading import Rows, read_tasks
from orchestrator.data.tasks import Task
from orchestrator.evaluation import Images
from orchestrator.reporter import Ranks
from orchestrator.streaming.stream import Stream


def open_split(split: Split, ranks: Ranks, *, on_ray: bool) -> Images | Stream:
    """Images on the device where they fit, or a stream of them.

    Args:
        split: of the data set.
        ranks: the processes that share it.
        on_ray: whether they are Ray's.
    """
    if not isinstance(split, StreamedSet):
        return Images.of(split).resident(ranks.device)
    if not on_ray:
        return Stream(split, ranks, read=_read_here)
    from orchestrator.streaming.ray_reading import read_on_ray

    return Stream(split, ranks, read=partial(read_on_ray, decoders=torch.get_num_threads()))


def _read_here(tasks: Sequence[Task], split: StreamedSet) -> Iterator[Rows]:
    memory, threads = split.memory // 4, torch.get_num_threads()
    return read_tasks(tasks, split.form, threads=threads, memory=memory)

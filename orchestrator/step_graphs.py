"""Training steps as CUDA graphs: launched at once, where a small network's kernels are shorter than
the time that Python takes to launch them.

A graph repeats what it was captured from, with the numbers of Python as they were then. Those that
change within an epoch, the learning rates and the number of the step, lie on the device; all others
(the weights of the loss, the augmentation) hold for an epoch, and each epoch captures anew.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orchestrator.batches import Selection
from orchestrator.teaching import Answers

logger = logging.getLogger(__name__)

_WARM_UP = 3
"""Steps before the first capture: they compile, choose algorithms and fill caches of constants."""

Act = Callable[[Sequence[Selection], "int | Tensor"], None]
"""One optimizer step on selections, whose number is given."""


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    step: Tensor  # () float64


class StepGraphs:
    """Makes steps, by replaying a graph where there is one for selections of their shape.

    Args:
        optimizer: a fused one, whose learning rates may be tensors.
        device: the GPU.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._device = device
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._rates_now: list[float] = []
        self._done: Counter[tuple[Any, ...]] = Counter()
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._first_of_epoch = True
        self._works = True

    def begin(self) -> None:
        """An epoch begins: what was captured is of the last one."""
        self._graphs.clear()
        self._optimizer.zero_grad(set_to_none=True)  # gradients lie in the graphs' memory
        self._first_of_epoch = True

    def run(self, selections: Sequence[Selection], step: int, act: Act) -> None:
        """Make one step.

        Args:
            selections: one for each micro-batch.
            step: its number.
            act: makes it. Within an epoch, only the selections' values, the number and the learning
                rates may change what it does.
        """
        key = tuple(_key(selection) for selection in selections)
        if key not in self._graphs:
            # The first one of an epoch makes what lives as long, such as the sums of the losses.
            if self._first_of_epoch or self._done[key] < _WARM_UP or not self._works:
                self._first_of_epoch = False
                self._done[key] += 1
                act(selections, step)
                return
            try:
                self._graphs[key] = self._capture(selections, act)
            except RuntimeError as error:
                self._works = False
                self._optimizer.zero_grad(set_to_none=True)
                logger.warning(
                    "the steps are not run as CUDA graphs (train.cuda_graphs), which this network "
                    "does not allow: %s",
                    str(_first(error)).strip().splitlines()[0],
                )
                act(selections, step)
                return
        graph = self._graphs[key]
        for own, new in zip(graph.inputs, _tensors(selections), strict=True):
            own.copy_(new)
        graph.step.fill_(step)
        self._set_rates()
        graph.graph.replay()

    def _capture(self, selections: Sequence[Selection], act: Act) -> _Graph:
        own = [_copied(selection) for selection in selections]
        step = torch.zeros((), dtype=torch.float64, device=self._device)
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        groups = self._optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            # Only now: AdamW warns of a capturable one whose step is run as it is.
            group.update({"lr": rate} | ({"capturable": True} if "capturable" in group else {}))
        try:
            # Other threads, of a tracker or of Ray, may use CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                act(own, step)
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)
        return _Graph(graph, _tensors(own), step)

    def _set_rates(self) -> None:
        now = [group["lr"] for group in self._optimizer.param_groups]
        if now != self._rates_now:
            for rate, value in zip(self._rates, now, strict=True):
                rate.fill_(value)
            self._rates_now = now


def _first(error: BaseException) -> BaseException:
    """What went wrong first; the capture that it broke fails once more when it ends."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _tensors(selections: Sequence[Selection]) -> list[Tensor]:
    return [part for one in selections for part in _parts(one)]


def _parts(one: Selection) -> list[Tensor]:
    parts = [one.images, one.labels, one.indices]
    if one.answers is not None:
        parts += one.answers
    return parts if one.positions is None else [*parts, one.positions]


def _copied(selection: Selection) -> Selection:
    images, labels, indices = (part.clone() for part in selection[:3])
    answers, positions = selection.answers, selection.positions
    if answers is not None:
        answers = Answers(*(part.clone() for part in answers))
    if positions is not None:
        positions = positions.clone()
    return Selection(images, labels, indices, answers, selection.counts, positions)


def _key(selection: Selection) -> tuple[Any, ...]:
    return tuple(selection.images.shape), selection.answers is not None

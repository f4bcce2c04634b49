"""A trial of several workers: Ray Train inside a trial of Ray Tune.

Train's controller and workers live and die with the trial's process, but the placement group that
holds their cores does not: unless the controller removes it, it stays until the whole job ends, and
the trials that wait for those cores wait with it. Therefore a trial that Tune stops first ends its
workers, and what was left by one that was killed is removed by the next that looks for room.
"""

from __future__ import annotations

import functools
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray
import ray.train
from ray import ObjectRef
from ray.tune.trainable import FunctionTrainable, wrap_function
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import RunFailed
from orchestrator.ray_session import DRIVER_ENVIRONMENT, live_nodes
from orchestrator.ray_train import (
    START_RETRIES,
    Stopped,
    start_training,
    this_rank,
    training_result,
)
from orchestrator.resources import WorkerResources, describe_need, describe_nodes
from orchestrator.trials.channel import BEFORE_ALL, Channel
from orchestrator.work import Work

_POLL_S = 1.0
_SHORTEST_WAIT_S = 30.0
"""Workers wait as long at least: those of a trial that was stopped need some seconds to end."""
_GENTLE_S = 10.0
"""How long workers that have been told to end may take before their group is removed."""
_STOP_S = 30.0
"""How long Tune's stop waits in all."""

_TAGS = range(2**24, 2**25)
"""Placement groups of Train's have no name, and Ray does not tell whose they are. Ours are known by
the bytes of memory, 16 to 32 MiB, that each worker asks for: a number that no other group has."""
_NAMESPACE = "dcd-groups"

_idle = threading.Event()
"""Unset while a trial of this process has workers."""
_idle.set()


def run_nested(
    work: Work,
    shared: Sequence[ObjectRef],
    resources: WorkerResources,
    *,
    report: Callable[[int, dict[str, float]], None],
) -> dict[str, float]:
    """Train in Ray Train's workers, reporting from this process.

    Args:
        work: what to train.
        shared: the parts of `Shared` in Ray's object store.
        resources: of each worker.
        report: called once for each step, in order, while the workers wait. Whatever it raises,
            such as Tune's SystemExit, ends the workers and comes out of here.

    Returns:
        The final metrics.

    Raises:
        UserError, Diverged: as in the workers.
        RunFailed: workers kept failing, or found no room within `scaling.wait_s`.
    """
    wait_s = max(_SHORTEST_WAIT_S, work.experiment.scaling.wait_s)
    settings = DRIVER_ENVIRONMENT | {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(wait_s / (START_RETRIES + 1))
    }
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    tag = secrets.choice(_TAGS)
    channel = _open_channel(tag)
    _idle.clear()
    training: Future[Any] | None = None
    try:
        training = start_training(
            work,
            shared,
            resources,
            reporter=functools.partial(_ChannelReporter, channel),
            memory=tag,
        )
        heard = _forward(channel, training, report)
        error = training.exception()
        if not heard and isinstance(error, ray.train.ControllerError):
            raise RunFailed(
                f"{describe_need(work.experiment.scaling)}, but within {wait_s:g} s could not be "
                f"started on {describe_nodes(live_nodes())}"
            ) from error
        return training_result(training)
    finally:
        try:
            if training is not None and not training.done():
                _end(channel, training, tag)
            ray.kill(channel)
            _remove_groups(lambda other: other == tag)
        finally:
            _idle.set()


def stoppable(function: Callable[[dict[str, Any]], None]) -> type[FunctionTrainable]:
    """Tune's trainable for a function that calls `run_nested`.

    Tune ends the process of a trial as soon as it has told the trial to stop. This one is not told
    so before its workers have ended.
    """

    class Trial(wrap_function(function)):  # type: ignore[misc]
        def cleanup(self) -> None:
            try:
                super().cleanup()
            finally:
                # A name of this module's and not its value, which does not travel.
                wait_idle()

    Trial.__name__ = getattr(function, "__name__", "trial")
    return Trial


def wait_idle() -> None:
    """Wait until a trial that has been told to stop has ended its workers."""
    _idle.wait(_STOP_S)


def remove_orphans() -> None:
    """Remove the placement groups of trials whose processes have died, whichever search's."""
    _remove_groups(lambda tag: not _is_alive(tag))


class _ChannelReporter:
    """A worker's side of the channel."""

    def __init__(self, channel: Any) -> None:
        self.ranks = this_rank()
        self._channel = channel

    def report(self, metrics_by_step: Mapping[int, Mapping[str, float]]) -> None:
        """Hand over metrics and wait for leave to go on.

        Raises:
            Stopped: there is none.
        """
        epochs = [(step, dict(metrics)) for step, metrics in sorted(metrics_by_step.items())]
        if self.ranks.rank == 0:
            ray.get(self._channel.offer.remote(epochs))
        if not ray.get(self._channel.may_go_on.remote(max(metrics_by_step, default=BEFORE_ALL))):
            raise Stopped("the trial has been stopped")


def _open_channel(tag: int) -> Any:
    """A channel on this node that lives as long as this process; its name says that it does."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel = (
        ray.remote(Channel)
        .options(num_cpus=0, name=_name(tag), namespace=_NAMESPACE, scheduling_strategy=here)
        .remote()
    )
    ray.get(channel.allow.remote(BEFORE_ALL))  # it is there, so its name is
    return channel


def _forward(
    channel: Any, training: Future[Any], report: Callable[[int, dict[str, float]], None]
) -> bool:
    """Report what the workers offer until they have ended; whether they have ever been heard of."""
    heard, last = False, BEFORE_ALL
    over = False
    while not over:
        over = training.done()  # before the last look: what came before the end is not lost
        heard, epochs = ray.get(channel.take.remote(0.0 if over else _POLL_S))
        for step, metrics in epochs:
            if step > last:  # workers that were replaced offer the past again
                report(step, metrics)
                last = step
                ray.get(channel.allow.remote(step))
        if not heard and not over:
            remove_orphans()
    return heard


def _end(channel: Any, training: Future[Any], tag: int) -> None:
    """End the workers, by force when they do not listen."""
    ray.get(channel.stop.remote())
    deadline = time.monotonic() + _GENTLE_S
    while not training.done() and time.monotonic() < deadline + _STOP_S:
        time.sleep(0.1)
        if time.monotonic() > deadline:
            _remove_groups(lambda other: other == tag)


def _remove_groups(which: Callable[[int], bool]) -> None:
    for id_, group in placement_group_table().items():
        memory = {bundle.get("memory", 0) for bundle in group["bundles"].values()}
        tag = int(memory.pop()) if len(memory) == 1 else 0
        if group["state"] != "REMOVED" and tag in _TAGS and which(tag):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_))))


def _is_alive(tag: int) -> bool:
    try:
        ray.get_actor(_name(tag), namespace=_NAMESPACE)
    except ValueError:
        return False
    return True


def _name(tag: int) -> str:
    return f"trial-{tag}"

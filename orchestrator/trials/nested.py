"""A trial of several workers: Ray Train inside a trial of Ray Tune."""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray.train
from ray import ObjectRef
from ray.util.queue import Empty, Queue

from orchestrator.errors import RunFailed
from orchestrator.ray_train import build_trainer, final_metrics, train_failure
from orchestrator.resources import WorkerResources
from orchestrator.trials.wards import Wards
from orchestrator.worker import Work

_POLL_S = 0.5


def run_nested(
    name: str,
    work: Work,
    shared: Sequence[ObjectRef],
    resources: WorkerResources,
    *,
    wards: Wards,
    report: Callable[[int, dict[str, float]], None],
) -> dict[str, float]:
    """Train in Train's workers and report their epochs from this process.

    Args:
        name: the trial's.
        work: what the workers do.
        shared: the parts of `Shared` in Ray's object store.
        resources: of each worker.
        wards: told of the workers' placement group, which this process may not live to remove.
        report: called with each epoch and its metrics, in this thread. Tune ends a trial in there.

    Returns:
        The final metrics.

    Raises:
        UserError, Diverged: as in the workers.
        RunFailed: workers kept failing, or never started.
    """
    attempt = uuid.uuid4().hex
    wards.begin(name, attempt)
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = build_trainer(
        work,
        shared,
        resources,
        callback=_Forward(queue),
        enter=functools.partial(wards.name_own_group, name, attempt),
    )
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit().return_value
        except BaseException as error:
            outcome["exception"] = error

    thread = threading.Thread(target=fit, name=f"ray-train-fit {name}", daemon=True)
    thread.start()
    running = True
    while running:
        running = thread.is_alive()  # what it reported before it ended is still to be read
        for epoch, metrics in _reports(queue):
            report(epoch, metrics)
    queue.shutdown()
    error = outcome.get("exception")
    if error is not None:
        raise RunFailed(train_failure(error)) from error
    return final_metrics(outcome["result"])


class _Forward(ray.train.UserCallback):
    """In Train's controller: hands the first worker's metrics to the trial's process."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Called once all ranks have reported."""
        self._queue.put(metrics[0]["by_step"])


def _reports(queue: Queue) -> list[tuple[int, dict[str, float]]]:
    """What has come in, waiting a little for the first."""
    try:
        by_step: dict[int, dict[str, float]] = queue.get(timeout=_POLL_S)
    except Empty:
        return []
    return sorted(by_step.items())

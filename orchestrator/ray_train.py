"""Ray Train around the epoch loop: run the workers, hear of their epochs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

import ray
import ray.train
import torch
from ray import ObjectRef
from ray.train.torch import TorchTrainer, get_device

from orchestrator.errors import Diverged, OrchestratorError, RunFailed, UserError
from orchestrator.journal import RESTARTS, Journal
from orchestrator.reporter import Ranks, Reporter
from orchestrator.resources import WorkerResources
from orchestrator.storage import Folder
from orchestrator.work import Shared, Work
from orchestrator.worker import run_work

START_RETRIES = 3
"""So often workers that find no room are waited for again; Ray's default is for ever."""


class Stopped(OrchestratorError):
    """A reporter raises it, in all ranks at the same report, to end a training early."""


_RETURNED: dict[str, type[OrchestratorError]] = {
    kind.__name__: kind for kind in (UserError, Diverged, Stopped)
}
"""Errors that all ranks raise alike and that would only repeat. Workers return them, for Ray would
replace one that raises; any other error ends all workers, and another attempt may help."""


def train_on_ray(work: Work, shared: Shared, resources: WorkerResources) -> dict[str, float]:
    """Run `run_work` in Ray Train workers. Lost workers are replaced and go on.

    Returns:
        The final metrics.

    Raises:
        UserError, Diverged: as in the workers.
        RunFailed: workers kept failing.
    """
    training = start_training(
        work,
        [ray.put(part) for part in shared],
        resources,
        reporter=_RayReporter,
        callbacks=[_JournalCallback(work.run)],
    )
    while not training.done():
        wait([training], timeout=0.2)  # short, so that signals are ours to handle in this thread
    return training_result(training)


def start_training(
    work: Work,
    shared: Sequence[ObjectRef],
    resources: WorkerResources,
    *,
    reporter: Callable[[], Reporter],
    callbacks: Sequence[ray.train.UserCallback] = (),
    memory: int = 0,
) -> Future[Any]:
    """Start Ray Train in a thread.

    Args:
        work: what to train.
        shared: the parts of `Shared` in Ray's object store: one copy per node, read in place.
        resources: of each worker.
        reporter: makes a worker's reporter, in the worker.
        callbacks: called in Ray Train's controller.
        memory: bytes that each worker asks for.

    Returns:
        What is to become of it, for `training_result`.
    """
    scaling = work.experiment.scaling
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "work": work,
            "shared": list(shared),
            "threads": resources.cpus,
            "reporter": reporter,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus}
            | ({"GPU": resources.gpus} if resources.gpus else {})
            | ({"memory": memory} if memory else {}),
        ),
        run_config=ray.train.RunConfig(
            # Our checkpoints, not Ray's snapshot, are what a run resumes from: a name of its own
            # for each attempt.
            name=f"attempt-{time.time_ns()}",
            storage_path=(work.run / "ray").location,
            failure_config=ray.train.FailureConfig(
                max_failures=scaling.max_failures, controller_failure_limit=START_RETRIES
            ),
            callbacks=list(callbacks),
        ),
    )
    training: Future[Any] = Future()

    def fit() -> None:
        try:
            training.set_result(trainer.fit().return_value)
        except BaseException as error:
            training.set_exception(error)

    threading.Thread(target=fit, name="ray-train-fit", daemon=True).start()
    return training


def training_result(training: Future[Any]) -> dict[str, float]:
    """The final metrics of a training that is over.

    Raises:
        UserError, Diverged: as in the workers.
        RunFailed: workers kept failing.
    """
    error = training.exception()
    if error is not None:
        raise RunFailed(_cause(error)) from error
    outcome = training.result()
    if "error" in outcome:
        raise _RETURNED[outcome["error"]](outcome["message"])
    metrics: dict[str, float] = outcome["metrics"]
    return metrics


def this_rank() -> Ranks:
    """A Ray Train worker's place among the others."""
    context = ray.train.get_context()
    return Ranks(rank=context.get_world_rank(), size=context.get_world_size(), device=get_device())


class _JournalCallback(ray.train.UserCallback):
    """Writes the journal, in the controller: the one writer however often workers are replaced."""

    def __init__(self, run: Folder) -> None:
        self._journal = Journal(run)
        self._last_step = 0
        self._starts = 0

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Called once all ranks have reported."""
        by_step = metrics[0]["by_step"]
        self._starts += metrics[0]["first"]
        if metrics[0]["first"] and self._starts > 1:
            self._journal.append({RESTARTS: self._starts - 1}, step=self._last_step)
        self._journal.append_history(list(by_step.items()))
        self._last_step = max(self._last_step, *by_step, 0)


class _RayReporter:
    """Hands metrics to the controller."""

    def __init__(self) -> None:
        self.ranks = this_rank()
        self._first = True

    def report(self, metrics_by_step: Mapping[int, Mapping[str, float]]) -> None:
        metrics = {step: dict(values) for step, values in metrics_by_step.items()}
        ray.train.report({"by_step": metrics, "first": self._first})
        self._first = False


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    torch.set_num_threads(config["threads"])
    shared = Shared(*ray.get(config["shared"]))
    try:
        return {"metrics": run_work(config["work"], shared, config["reporter"]())}
    except tuple(_RETURNED.values()) as error:
        return {"error": type(error).__name__, "message": str(error)}


def _cause(error: BaseException) -> str:
    """One sentence for what made the workers fail."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = min(failures.items())
        cause = getattr(failure, "cause", None) or failure
        if isinstance(cause, OrchestratorError):
            return str(cause)
        last = str(cause).strip().splitlines()[-1] if str(cause).strip() else ""
        return f"worker {rank} failed: {type(cause).__name__}: {last}"
    return f"Ray Train failed: {str(error).strip().splitlines()[-1] if str(error) else error!r}"

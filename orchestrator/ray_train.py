"""Ray Train around the epoch loop: start or join Ray, run the workers, hear of their epochs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import torch
from ray import ObjectRef
from ray.autoscaler.sdk import request_resources
from ray.train.torch import TorchTrainer, get_device

from orchestrator.error_text import cause
from orchestrator.errors import Diverged, Interrupted, OrchestratorError, RunFailed, UserError
from orchestrator.journal import RESTARTS, Journal
from orchestrator.reporter import Ranks, Reporter
from orchestrator.resources import (
    Node,
    WorkerResources,
    describe_need,
    describe_nodes,
    joins_cluster,
    per_worker,
    this_machine,
)
from orchestrator.spec import ScalingSpec
from orchestrator.storage import Folder
from orchestrator.worker import Shared, Work, run_work

logger = logging.getLogger(__name__)

DRIVER_ENVIRONMENT = {
    # The controller asks its workers for reports this often; the default of 2 s would hold up
    # every epoch by up to as much, since a report waits for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # One actor less; a pre-empted worker is noticed by its death.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Users' relative paths are made absolute in the driver, so workers may stay where they are.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


START_RETRIES = 3
"""So often workers that find no room are waited for again; Ray's default is for ever."""


class Stopped(OrchestratorError):
    """A reporter raises it, in all ranks at the same report, to end a training early."""


_RETURNED: dict[str, type[OrchestratorError]] = {
    kind.__name__: kind for kind in (UserError, Diverged, Stopped)
}
"""Errors that all ranks raise alike and that would only repeat. Workers return them, for Ray would
replace one that raises; any other error ends all workers, and another attempt may help."""


@contextmanager
def ray_session(*, dashboard: bool = False) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, else start Ray on this machine and end it after.

    Args:
        dashboard: whether a Ray started here has a dashboard, on a free port of this machine alone.
    """
    if ray.is_initialized():
        yield
        return
    for key, value in DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    paths = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        # What matters of the workers' work arrives by the journal; Ray keeps their output in its
        # session folder.
        "log_to_driver": False,
        "runtime_env": {"env_vars": {"PYTHONPATH": paths}},
    }
    with _own_signal_handlers():
        if joins_cluster():
            _join(options)
        else:
            if dashboard:
                options |= {"dashboard_host": "127.0.0.1", "dashboard_port": _free_port()}
            ray.init(address="local", include_dashboard=dashboard, **options)
    try:
        yield
    finally:
        ray.shutdown()


def live_nodes() -> list[Node]:
    """The nodes of the cluster that are alive."""
    return [
        Node(int(n["Resources"].get("CPU", 0)), n["Resources"].get("GPU", 0.0))
        for n in ray.nodes()
        if n["Alive"]
    ]


def known_nodes() -> list[Node]:
    """The nodes that a command would run on: of the cluster it would join, or this machine."""
    if not joins_cluster():
        return [this_machine()]
    with ray_session():
        return live_nodes()


def cluster_resources(scaling: ScalingSpec, *, say: Callable[[str], None]) -> WorkerResources:
    """Resources per worker on the cluster, waiting up to `scaling.wait_s` for it to grow.

    Raises:
        RunFailed: it did not grow in time.
    """
    deadline = time.monotonic() + scaling.wait_s
    asked: list[dict[str, float]] = []
    try:
        while True:
            sizes = live_nodes()
            resources = per_worker(scaling, sizes)
            if resources is not None:
                return resources
            wanted = _bundles(scaling, sizes)
            if wanted != asked:
                say(
                    f"waiting for the cluster: {describe_need(scaling)}, it has "
                    f"{describe_nodes(sizes)}"
                )
                request_resources(bundles=wanted)
                asked = wanted
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"after {scaling.wait_s:g} s the cluster still has {describe_nodes(sizes)}, "
                    f"but {describe_need(scaling)} (scaling.wait_s sets how long to wait)"
                )
            time.sleep(min(2.0, max(0.1, deadline - time.monotonic())))
    finally:
        if asked:  # or the cluster would stay that large, and cost that much, after the run
            request_resources(bundles=[])


def check_storage_is_shared(*, storage_is_default: bool) -> None:
    """Refuse a default storage folder, which only this node has, on a cluster of several nodes.

    Raises:
        UserError: the cluster has several nodes and nobody has chosen the storage.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and storage_is_default:
        raise UserError(
            f"storage.path: not set, and the cluster has {len(nodes)} nodes: name a folder "
            "that all of them reach (a shared mount or a URI such as s3://bucket/dcd)"
        )


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


def _join(options: dict[str, Any]) -> None:
    """Join the cluster of RAY_ADDRESS; Ray itself would try an absent one for minutes."""
    address = os.environ["RAY_ADDRESS"]
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon and port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunFailed(
            f"RAY_ADDRESS: no Ray cluster answers at {address} ({cause(error)}): start one, "
            "correct it, or unset it to use this machine"
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Put back the handlers that `ray.init` replaces with some that end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as error:  # Ray's own handler of SIGTERM, while it starts
        raise Interrupted(signal.SIGTERM) from error
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


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


def _bundles(scaling: ScalingSpec, nodes: Sequence[Node]) -> list[dict[str, float]]:
    """What each worker needs at least, for a cluster that grows on request."""
    gpus = scaling.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0
    cpus = 1 if scaling.cpus_per_worker == "auto" else scaling.cpus_per_worker
    bundle = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    return [bundle] * scaling.workers

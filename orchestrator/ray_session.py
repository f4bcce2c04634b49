"""Ray's beginning and end around a command, and the machines that it has."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
from ray.autoscaler.sdk import request_resources

from orchestrator.error_text import cause
from orchestrator.errors import Interrupted, RunFailed, UserError
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

DRIVER_ENVIRONMENT = {
    # The controller asks its workers for reports this often, and a worker waits with a report until
    # the one before it was taken: the default of 2 s would hold up shorter epochs. Asking costs a
    # hundredth of a core at this rate.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # One actor less; a pre-empted worker is noticed by its death.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Users' relative paths are made absolute in the driver, so workers may stay where they are.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}

_UNSEEN = {
    # What only a dashboard shows. Each of Ray's dozen processes spends time on it.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    # Nobody is shown the workers' output as it comes, so new files of it are looked for once a
    # minute, and not ten times a second.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "60",
}
"""Turned off in a Ray that is started here without a dashboard."""


@contextmanager
def _set_where_unset(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what is started meanwhile."""
    new = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            del os.environ[key]


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
    joined = joins_cluster()
    with _own_signal_handlers():
        if joined:
            _join(options)
        else:
            if dashboard:
                options |= {"dashboard_host": "127.0.0.1", "dashboard_port": _free_port()}
            with _set_where_unset({} if dashboard else _UNSEEN):
                ray.init(address="local", include_dashboard=dashboard, **options)
    try:
        yield
    finally:
        if joined:
            ray.shutdown()
        else:
            end_ray()


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
    nodes = live_nodes()
    if len(nodes) > 1 and storage_is_default:
        raise UserError(
            f"storage.path: not set, and the cluster has {len(nodes)} nodes: name a folder "
            "that all of them reach (a shared mount or a URI such as s3://bucket/dcd)"
        )


def end_ray() -> None:
    """End a Ray that this process has started, with all of its processes.

    Those that are still connected to their raylet end with it. Others are on their way out, and
    some deadlock there (in Ray 2.60's destructor of a worker's publisher) and would keep their
    memory for ever. All that they did for us is done by then.
    """
    below: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == "raylet":
                below += child.children(recursive=True)
    try:
        ray.shutdown()
    finally:
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()


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
    kept = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    except SystemExit as error:  # Ray's own handler of SIGTERM, while it starts
        raise Interrupted(signal.SIGTERM) from error
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _bundles(scaling: ScalingSpec, nodes: Sequence[Node]) -> list[dict[str, float]]:
    """What each worker needs at least, for a cluster that grows on request."""
    gpus = scaling.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0
    cpus = 1 if scaling.cpus_per_worker == "auto" else scaling.cpus_per_worker
    bundle = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    return [bundle] * scaling.workers

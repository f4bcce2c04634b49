"""Tracking a run with MLflow. Training writes to the run's folder; one thread brings it to MLflow.

The server may be slow, absent or die: training neither waits for it nor fails because of it. What
could not be sent stays in the run's folder and is sent by the next `sync_run`.
"""

from __future__ import annotations

import getpass
import logging
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator.journal import Journal
from orchestrator.mlflow_run import KEY_TAG
from orchestrator.mlflow_sync import FINISH, REQUEST, SyncReport, has_pending, sync_run
from orchestrator.storage import Folder

__all__ = [
    "SyncReport",
    "Tracker",
    "default_tracking_uri",
    "finish_request",
    "has_pending",
    "pending_runs",
    "reopen",
    "request_tracking",
    "retarget",
    "sync_run",
]

logger = logging.getLogger(__name__)

_MAX_BACKOFF_S = 30.0
_CLOSING_ATTEMPTS = 2


def default_tracking_uri(base: Path) -> str:
    """A SQLite database in an absolute folder."""
    return f"sqlite:///{base.absolute() / 'mlflow.db'}"


def request_tracking(
    run: Folder,
    *,
    uri: str,
    experiment: str,
    run_name: str,
    tags: Mapping[str, Any],
    params: Mapping[str, Any],
    texts: Mapping[str, str],
    dataset: Mapping[str, str] | None = None,
    artifact_root: str | None = None,
    parent_run_id: str | None = None,
    register: str | None = None,
) -> None:
    """Write down all that is needed to create and fill the run in MLflow, now or later.

    A run that has been requested before at the same URI goes on in its MLflow run, with the
    parameters it has there (MLflow never changes a parameter) and the new tags and texts.

    Args:
        run: the run's folder.
        uri: MLflow tracking URI.
        experiment: MLflow experiment, created when it is not there.
        run_name: the run's name in MLflow.
        tags: tags of the run; values become strings.
        params: parameters of the run; values become strings.
        texts: text artifacts, artifact path -> text.
        dataset: ``name``, ``digest``, ``source`` and ``profile`` (JSON) of the data set.
        artifact_root: where a new experiment keeps its artifacts when `uri` is a database; a server
            decides for itself.
        parent_run_id: MLflow run that this one is shown under.
        register: name to register the student under.
    """
    uri = _absolute(uri)
    previous = run.read_json(REQUEST)
    again = previous is not None and previous["uri"] == uri
    key = previous["key"] if again else uuid.uuid4().hex
    all_tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": "dcd",
        "mlflow.source.type": "JOB",
        **tags,
        KEY_TAG: key,
    }
    if parent_run_id is not None:
        all_tags["mlflow.parentRunId"] = parent_run_id
    run.write_json(
        REQUEST,
        {
            "key": key,
            "revision": uuid.uuid4().hex,
            "created_ms": previous["created_ms"] if again else _now_ms(),
            "uri": uri,
            "experiment": experiment,
            "run_name": run_name,
            "artifact_root": None if artifact_root is None else str(Path(artifact_root).absolute()),
            "register": register,
            "tags": {name: str(value) for name, value in all_tags.items()},
            "params": previous["params"] if again else {k: str(v) for k, v in params.items()},
            "texts": dict(texts),
            "dataset": None if dataset is None else dict(dataset),
        },
    )


def finish_request(
    run: Folder,
    *,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    metrics: Mapping[str, float],
    tags: Mapping[str, Any],
    student: bool,
    step: int | None = None,
) -> None:
    """Write down how the run ended.

    Args:
        run: the run's folder.
        status: MLflow's word for it.
        metrics: final results, which go through the journal like all others.
        tags: tags to add; values become strings.
        student: whether the package in ``student/`` becomes an MLflow model.
        step: step (epoch) of the results; the newest in the journal when not given.
    """
    journal = Journal(run)
    if step is None:
        step = max((point.step for point in journal.points()), default=0)
    journal.append_history([(step, metrics)])
    run.write_json(
        FINISH,
        {
            "key": uuid.uuid4().hex,
            "time_ms": _now_ms(),
            "status": status,
            "step": step,
            "tags": {name: str(value) for name, value in tags.items()},
            "student": student,
        },
    )


def retarget(run: Folder, *, uri: str, artifact_root: str | None) -> None:
    """Send a run to another place than was requested, from the start.

    Args:
        run: the run's folder, with `request_tracking` done.
        uri: the other MLflow tracking URI.
        artifact_root: as for `request_tracking`.
    """
    request = run.read_json(REQUEST)
    if request["uri"] != uri:
        fresh = {"key": uuid.uuid4().hex, "revision": uuid.uuid4().hex}
        tags = request["tags"] | {KEY_TAG: fresh["key"]}
        run.write_json(
            REQUEST, request | fresh | {"uri": uri, "artifact_root": artifact_root, "tags": tags}
        )


def reopen(run: Folder) -> None:
    """Take back `finish_request`, as a resumed run does: it is running again."""
    run.delete(FINISH)


def pending_runs(storage: Folder) -> list[str]:
    """Names of the runs in a storage folder with something that MLflow does not have."""
    return [name for name in storage.names() if _is_pending_run(storage / name)]


class Tracker:
    """A background thread that keeps MLflow up to date with one run."""

    def __init__(self, run: Folder, *, interval_s: float = 1.0) -> None:
        """Args:
        run: the run's folder, with `request_tracking` done.
        interval_s: how often to look for something new.
        """
        self._run = run
        self._interval_s = interval_s
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._report = SyncReport(None, 0, "nothing was sent yet", None)
        self._thread = threading.Thread(
            target=self._work, name=f"mlflow {run.location}", daemon=True
        )

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self, timeout_s: float) -> SyncReport:
        """Send what is left and stop.

        Blocks for at most `timeout_s`, less when the server is found dead twice in a row; what the
        server does not take by then is for a later `sync_run`.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return self._report._replace(pending="the tracking server was too slow")
        return self._report

    def _work(self) -> None:
        journal = Journal(self._run)
        sent_points = 0
        pause_s = self._interval_s
        attempts_left = _CLOSING_ATTEMPTS
        while attempts_left > 0:
            closing = self._closing.is_set()
            self._wake.clear()
            report = sync_run(self._run, journal=journal)
            sent_points += report.sent_points
            self._report = report._replace(sent_points=sent_points)
            if closing:
                if report.pending is None:
                    return
                attempts_left -= 1
                time.sleep(min(self._interval_s, 1.0) if attempts_left else 0)
            elif report.pending is None:
                pause_s = self._interval_s
                self._wake.wait(pause_s)
            else:
                if pause_s == self._interval_s:  # once per outage
                    logger.warning("%s; training goes on, and it is sent later", report.pending)
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, _MAX_BACKOFF_S)


def _is_pending_run(entry: Folder) -> bool:
    try:
        return has_pending(entry)
    except NotADirectoryError:  # a file beside the runs
        return False


def _absolute(uri: str) -> str:
    """A SQLite database in the working directory, for whoever sends the run from another one."""
    path = uri.removeprefix("sqlite:///")
    return f"sqlite:///{Path(path).absolute()}" if path and path != uri else uri


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without an entry for this user
        return "unknown"

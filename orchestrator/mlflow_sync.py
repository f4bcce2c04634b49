"""Bringing MLflow up to date with one run's folder: restartable at any point, never doubling.

What is to be sent lies in the run's folder (``tracking/request.json``, the journal,
``tracking/finish.json``, ``student/``); how far it got is kept in ``tracking/state.json``. A crash
between an action and its note in the state only repeats an action that MLflow takes as the same:
the run is found again by its ``dcd.key`` tag, equal points and parameters are stored once.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.journal import Journal
from orchestrator.mlflow_client import Unsent, connect
from orchestrator.mlflow_run import create_run, describe_run, end_run, known_run, send_points
from orchestrator.storage import Folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

logger = logging.getLogger(__name__)

REQUEST = "tracking/request.json"
FINISH = "tracking/finish.json"
STATE = "tracking/state.json"


class SyncReport(NamedTuple):
    """What a sync achieved."""

    run_id: str | None
    """The MLflow run, once it exists."""
    sent_points: int
    """Points sent by this call."""
    pending: str | None
    """Why something is left to send; None when nothing is."""
    model_uri: str | None
    """The student in MLflow, once it is there."""


def sync_run(run: Folder, *, journal: Journal | None = None) -> SyncReport:
    """Send what MLflow does not have yet. Server trouble is reported, never raised.

    Args:
        run: the run's folder.
        journal: the run's journal, when the caller keeps one that has been read already.
    """
    sync: _Sync | None = None
    pending = None
    try:
        with _alone(run):
            sync = _Sync(run, journal or Journal(run))
            pending = sync.send()
    except Unsent as reason:
        pending = str(reason)
    except Exception as error:  # MLflow raises its own, requests', SQLAlchemy's and OS errors
        logger.debug("sync of %s failed", run, exc_info=True)
        pending = f"MLflow: {_first_line(error)}"
    if sync is None:
        return SyncReport(None, 0, pending, None)
    return SyncReport(sync.state.get("run_id"), sync.sent_points, pending, sync.model_uri)


def has_pending(run: Folder) -> bool:
    """Whether a run has something that MLflow does not have; asks no server."""
    request = run.read_json(REQUEST)
    if request is None:
        return False
    state = _read_state(run, request)
    return _is_behind(state, request, run.read_json(FINISH), Journal(run).last_number)


class _Sync:
    """One sync of one run."""

    def __init__(self, run: Folder, journal: Journal) -> None:
        self.run = run
        self.journal = journal
        self.request: dict[str, Any] = run.read_json(REQUEST) or {}
        self.finish: dict[str, Any] | None = run.read_json(FINISH)
        self.state = _read_state(run, self.request)
        self.sent_points = 0

    @property
    def model_uri(self) -> str | None:
        model = self.state.get("model")
        return f"models:/{model['id']}" if model else None

    def send(self) -> str | None:
        """Send everything; returns why the student could not be, when the rest was."""
        last_number = self.journal.last_number
        if not self.request or not _is_behind(self.state, self.request, self.finish, last_number):
            return None
        with connect(self.request["uri"]) as client:
            info = self._ensure_run(client)
            self._describe(client, info.run_id)
            self._send_points(client, info.run_id, last_number)
            return self._finish(client, info)

    def _ensure_run(self, client: MlflowClient) -> RunInfo:
        run_id = self.state.get("run_id")
        info = known_run(client, run_id) if run_id else None
        if info is None:
            self.state = {"uri": self.request["uri"]}
            info = create_run(client, self.request)
            self._note(run_id=info.run_id)
        return info

    def _describe(self, client: MlflowClient, run_id: str) -> None:
        if self.state.get("described") != self.request["revision"]:
            describe_run(client, run_id, self.request)
            self._note(described=self.request["revision"])

    def _send_points(self, client: MlflowClient, run_id: str, last_number: int) -> None:
        sent_through = self.state.get("sent_through", 0)
        if last_number > sent_through:
            points = self.journal.points(after=sent_through, until=last_number)
            self.sent_points += send_points(client, run_id, points)
            self._note(sent_through=last_number)

    def _finish(self, client: MlflowClient, info: RunInfo) -> str | None:
        if self.finish is None:
            if info.status != "RUNNING":  # it was resumed
                client.update_run(info.run_id, status="RUNNING")
            self._note(finished=None)
            return None
        end_run(client, info.run_id, self.finish)
        problem = None
        if self.finish["student"]:
            problem = self._send_student(client, info.run_id, step=self.finish["step"])
        if problem is None:
            self._note(finished=self.finish["key"])
        return problem

    def _send_student(self, client: MlflowClient, run_id: str, *, step: int) -> str | None:
        """Log and register the student; returns why that cannot be."""
        # Imported here: it needs torch, which a run without a student can do without.
        from orchestrator import mlflow_registry, mlflow_student
        from orchestrator.student_model import SOURCE_FILE, read_package

        package = self.run / "student"
        source = package.read(SOURCE_FILE)
        if source is None:
            return None
        digest = hashlib.sha256(source).hexdigest()[:16]
        about = read_package(package.location)
        if self.state.get("model", {}).get("digest") != digest:
            try:
                model_id = mlflow_student.log_student(
                    client,
                    package,
                    run_id=run_id,
                    step=step,
                    params=self.request["params"],
                    digest=digest,
                )
            except (mlflow_student.NotExportable, UserError) as error:
                return f"the student cannot become an MLflow model: {error}"
            points = self.journal.points()
            scores = {p.name: p for p in points if about.metrics.get(p.name) == p.value}
            send_points(client, run_id, scores.values(), model_id=model_id)
            self._note(model={"digest": digest, "id": model_id})
        name = self.request["register"]
        if name is not None and self.state.get("registered") != self.model_uri:
            try:
                score = mlflow_registry.Score(
                    mlflow_registry.SELECTION_METRIC,
                    about.metrics[mlflow_registry.SELECTION_METRIC],
                    about.lineage["data.fingerprint"],
                    about.lineage["data.split_seed"],
                )
            except KeyError as error:
                return f"the student cannot be registered: its package does not tell {error}"
            mlflow_registry.register_student(
                client, self.state["model"]["id"], name, run_id=run_id, score=score
            )
            self._note(registered=self.model_uri)
        return None

    def _note(self, **changes: Any) -> None:
        self.state |= changes
        self.run.write_json(STATE, self.state)


def _is_behind(
    state: dict[str, Any],
    request: dict[str, Any],
    finish: dict[str, Any] | None,
    last_number: int,
) -> bool:
    return (
        state.get("run_id") is None
        or state.get("described") != request["revision"]
        or last_number > state.get("sent_through", 0)
        or (finish["key"] if finish else None) != state.get("finished")
    )


def _read_state(run: Folder, request: dict[str, Any]) -> dict[str, Any]:
    """How far a sync got; another tracking URI starts anew."""
    state: dict[str, Any] = run.read_json(STATE) or {}
    uri = request.get("uri")
    return state if state.get("uri") == uri else {"uri": uri}


@contextmanager
def _alone(run: Folder) -> Iterator[None]:
    """Keep other threads and processes of this machine from syncing the same run meanwhile."""
    local = run.local_path
    if local is None:
        digest = hashlib.sha256(run.location.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir(), f"dcd-sync-{os.getuid()}-{digest}.lock")
    elif (local / REQUEST).exists():
        path = local / "tracking" / ".sync.lock"
    else:
        yield  # nothing to send: leave no trace
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unsent("another process is sending this run") from error
        yield


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0] if text else 'no message'} ({type(error).__name__})"

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
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.journal import Journal
from orchestrator.mlflow_client import Unreachable, connect, is_http
from orchestrator.storage import Folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

logger = logging.getLogger(__name__)

REQUEST = "tracking/request.json"
FINISH = "tracking/finish.json"
STATE = "tracking/state.json"

KEY_TAG = "dcd.key"
# Limits of MLflow's batch call.
_MAX_METRICS = 1000
_MAX_PARAMS = 100


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


def sync_run(
    run: Folder, *, deadline_s: float | None = None, journal: Journal | None = None
) -> SyncReport:
    """Send what MLflow does not have yet. Server trouble is reported, never raised.

    Args:
        run: the run's folder.
        deadline_s: begin nothing new after this many seconds.
        journal: the run's journal, when the caller keeps one that has been read already.
    """
    deadline = time.monotonic() + (float("inf") if deadline_s is None else deadline_s)
    sync: _Sync | None = None
    pending = None
    try:
        with _alone(run):
            sync = _Sync(run, journal or Journal(run), deadline)
            pending = sync.send()
    except (Unreachable, _Pending) as reason:
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
    finish = run.read_json(FINISH)
    return (
        state.get("run_id") is None
        or state.get("described") != request["revision"]
        or Journal(run).last_number > state.get("sent_through", 0)
        or (finish["key"] if finish else None) != state.get("finished")
    )


class _Pending(Exception):
    """Something stays unsent, for a reason that the message gives."""


class _Sync:
    """One sync of one run."""

    def __init__(self, run: Folder, journal: Journal, deadline: float) -> None:
        self.run = run
        self.journal = journal
        self.deadline = deadline
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
        if not self.request or not has_pending(self.run):
            return None
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise _Pending("out of time")
        with connect(self.request["uri"], timeout_s=min(remaining, 3.0)) as client:
            info = self._ensure_run(client)
            self._describe(client, info.run_id)
            self._send_points(client, info.run_id)
            return self._finish(client, info)

    def _ensure_run(self, client: MlflowClient) -> RunInfo:
        from mlflow.exceptions import MlflowException

        if self.state.get("run_id"):
            try:
                info: RunInfo = client.get_run(self.state["run_id"]).info
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                logger.warning("MLflow lost run %s: sending it anew", self.state["run_id"])
                self.state = {"uri": self.request["uri"]}
            else:
                if info.lifecycle_stage == "deleted":
                    raise _Pending(f"the MLflow run {info.run_id} was deleted: restore it first")
                return info
        self._check_deadline()
        experiment_id = self._ensure_experiment(client)
        # A crash may have come between the run's creation and the note of its id.
        found = client.search_runs(
            [experiment_id], f"tags.`{KEY_TAG}` = '{self.request['key']}'", max_results=1
        )
        if found:
            run = found[0]
        else:
            run = client.create_run(
                experiment_id,
                start_time=self.request["created_ms"],
                tags=self.request["tags"],
                run_name=self.request["run_name"],
            )
        self._note(run_id=run.info.run_id)
        return run.info

    def _ensure_experiment(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        name = self.request["experiment"]
        if client.get_experiment_by_name(name) is None:
            root = self.request["artifact_root"]
            location = None
            if root is not None and not is_http(self.request["uri"]):
                location = str(Path(root, re.sub(r"[^A-Za-z0-9._-]", "_", name)))
            try:
                client.create_experiment(name, artifact_location=location)
            except MlflowException as error:  # another run may have been quicker
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        if experiment.lifecycle_stage == "deleted":
            raise _Pending(f"the MLflow experiment {name!r} was deleted: restore it first")
        return str(experiment.experiment_id)

    def _describe(self, client: MlflowClient, run_id: str) -> None:
        """Parameters, tags and texts."""
        if self.state.get("described") == self.request["revision"]:
            return
        from mlflow.entities import Param, RunTag

        params = [Param(name, value) for name, value in self.request["params"].items()]
        for start in range(0, len(params), _MAX_PARAMS):
            self._check_deadline()
            client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
        tags = [RunTag(name, value) for name, value in self.request["tags"].items()]
        client.log_batch(run_id, tags=tags)
        for path, text in self.request["texts"].items():
            self._check_deadline()
            client.log_text(run_id, text, path)
        self._note(described=self.request["revision"])

    def _send_points(self, client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Metric

        last_number = self.journal.last_number
        metrics = [
            Metric(point.name, point.value, point.timestamp_ms, point.step)
            for point in self.journal.points(after=self.state.get("sent_through", 0))
        ]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._check_deadline()
            batch = metrics[start : start + _MAX_METRICS]
            client.log_batch(run_id, metrics=batch)
            self.sent_points += len(batch)
        if last_number > self.state.get("sent_through", 0):
            self._note(sent_through=last_number)

    def _finish(self, client: MlflowClient, info: RunInfo) -> str | None:
        if self.finish is None:
            if info.status != "RUNNING":
                client.update_run(info.run_id, status="RUNNING")
            self._note(finished=None)
            return None
        problem = None
        if self.finish["student"]:
            self._check_deadline()
            problem = self._send_student(client, info.run_id, step=self.finish["step"])
        from mlflow.entities import RunTag

        self._check_deadline()
        client.log_batch(
            info.run_id, tags=[RunTag(name, value) for name, value in self.finish["tags"].items()]
        )
        client.set_terminated(info.run_id, self.finish["status"], self.finish["time_ms"])
        if problem is None:
            self._note(finished=self.finish["key"])
        return problem

    def _send_student(self, client: MlflowClient, run_id: str, *, step: int) -> str | None:
        """Log and register the student; returns why that cannot be."""
        # Imported here: it needs torch, which a run without a student can do without.
        from orchestrator import mlflow_student
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
            self._check_deadline()
            self._score_model(client, run_id, model_id, about.metrics)
            self._note(model={"digest": digest, "id": model_id})
        name = self.request["register"]
        if name is not None and self.state.get("registered") != self.model_uri:
            self._check_deadline()
            score = mlflow_student.Score(
                mlflow_student.SELECTION_METRIC,
                about.metrics[mlflow_student.SELECTION_METRIC],
                about.lineage["data.fingerprint"],
                about.lineage["data.split_seed"],
            )
            mlflow_student.register_student(
                client, self.state["model"]["id"], name, run_id=run_id, score=score
            )
            self._note(registered=self.model_uri)
        return None

    def _score_model(
        self, client: MlflowClient, run_id: str, model_id: str, scores: Mapping[str, float]
    ) -> None:
        """Show the run's points that are the student's scores at the model too."""
        from mlflow.entities import Metric

        points = {p.name: p for p in self.journal.points() if scores.get(p.name) == p.value}
        metrics = [
            Metric(p.name, p.value, p.timestamp_ms, p.step, model_id=model_id)
            for p in points.values()
        ]
        client.log_batch(run_id, metrics=metrics)

    def _check_deadline(self) -> None:
        if time.monotonic() > self.deadline:
            raise _Pending("out of time")

    def _note(self, **changes: Any) -> None:
        self.state |= changes
        self.run.write_json(STATE, self.state)


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
            raise _Pending("another process is sending this run") from error
        yield


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0] if text else 'no message'} ({type(error).__name__})"

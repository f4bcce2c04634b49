"""Bringing MLflow up to date with one run's folder: restartable at any point, never doubling.

What is to be sent lies in the run's folder (the request, the journal, how it ended, ``student/``),
and so does how far that has come. A crash between an action and its note in the state only repeats
an action that MLflow takes as the same: a run whose creation was begun is looked for by its
``dcd.key`` tag before it is created again, equal points and parameters are stored once.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from orchestrator.journal import Journal
from orchestrator.mlflow_client import Unreachable, Unsent
from orchestrator.mlflow_run import (
    PARENT_TAG,
    TEACHER_MODEL_TAG,
    Destination,
    create_run,
    find_run,
    known_run,
    log_dataset,
    log_files,
    log_teacher,
    log_texts,
    log_values,
    open_destination,
)
from orchestrator.storage import Folder
from orchestrator.tracking_files import (
    FINISH,
    STATE,
    is_behind,
    must_register,
    parent_of,
    read_request,
    read_state,
    sending_alone,
)

logger = logging.getLogger(__name__)

# What MLflow answers for a run that was deleted, and for one that it does not know.
_MAY_BE_GONE = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")


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
    server_failed: bool = False
    """Whether that is the server's doing, and not something about this run."""


def sync_run(
    run: Folder, *, journal: Journal | None = None, to: Destination | None = None
) -> SyncReport:
    """Send what MLflow does not have yet. Server trouble is reported, never raised.

    Args:
        run: the run's folder.
        journal: the run's journal, when the caller keeps one that has been read already.
        to: an open connection to where the run goes, when the caller sends many.
    """
    sync: _Sync | None = None
    pending, server_failed = None, False
    try:
        with sending_alone(run):
            request = read_request(run)
            if request is None:
                return SyncReport(None, 0, None, None)
            sync = _Sync(run, request, journal or Journal(run))
            pending = sync.send(to)
    except Unsent as reason:
        pending, server_failed = str(reason), isinstance(reason, Unreachable)
    except Exception as error:  # MLflow raises its own, requests', SQLAlchemy's and OS errors
        logger.debug("sync of %s failed", run, exc_info=True)
        pending, server_failed = f"MLflow: {_first_line(error)}", True
    if sync is None:
        return SyncReport(None, 0, pending, None, server_failed)
    return SyncReport(
        sync.state.get("run_id"), sync.sent_points, pending, sync.model_uri, server_failed
    )


class _Sync:
    """One sync of one run. The state is kept here, and written where a crash must not lose it."""

    def __init__(self, run: Folder, request: dict[str, Any], journal: Journal) -> None:
        self.run = run
        self.request = request
        self.journal = journal
        self.finish: dict[str, Any] | None = run.read_json(FINISH)
        self.state = read_state(run, request)
        self.sent_points = 0
        self._written = dict(self.state)

    @property
    def model_uri(self) -> str | None:
        model = self.state.get("model")
        return f"models:/{model['id']}" if model else None

    def send(self, to: Destination | None) -> str | None:
        """Send everything; returns why some could not be, when the rest was."""
        last_number = self.journal.last_number
        if not is_behind(self.state, self.request, self.finish, last_number):
            return None
        if to is None or to.uri != self.request["uri"]:
            with open_destination(self.request["uri"]) as to:
                return self._send_and_note(to, last_number)
        return self._send_and_note(to, last_number)

    def _send_and_note(self, to: Destination, last_number: int) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            try:
                problem = self._send_all(to, last_number)
            except MlflowException as error:
                if error.error_code not in _MAY_BE_GONE or not self._is_lost(to):
                    raise
                self.state = {"uri": to.uri, "attempted": True}
                problem = self._send_all(to, last_number)
        except Exception:
            self._save()
            raise
        self._save()
        return problem

    def _is_lost(self, to: Destination) -> bool:
        run_id = self.state.get("run_id")
        if run_id is None or known_run(to.client, run_id) is not None:
            return False
        logger.warning("MLflow lost run %s: sending it anew", run_id)
        return True

    def _send_all(self, to: Destination, last_number: int) -> str | None:
        created = self.state.get("run_id") is None and self._enter(to)
        run_id, request, finish = self.state["run_id"], self.request, self.finish
        describe = self.state.get("described") != request["revision"]
        end = finish is not None and self.state.get("finished") != finish["key"]
        sent_through = self.state.get("sent_through", 0)
        self.sent_points += log_values(
            to.client,
            run_id,
            self.journal.points(after=sent_through, until=last_number),
            params=request["params"] if describe else None,
            tags=None if created else self._tags(to, describe=describe, end=end),
        )
        self.state["sent_through"] = last_number
        if describe:
            if request["dataset"] is not None:
                log_dataset(to.client, run_id, request["dataset"])
            if TEACHER_MODEL_TAG in request["tags"]:
                log_teacher(to.client, run_id, request["tags"][TEACHER_MODEL_TAG])
            log_texts(to, self.state["artifact_uri"], request["texts"])
            self.state["described"] = request["revision"]
        if finish is None:
            if self.state["status"] != "RUNNING":  # it was resumed
                to.client.update_run(run_id, status="RUNNING")
            self.state |= {"status": "RUNNING", "finished": None}
            return None
        if end:
            return self._end(to, finish)
        register = must_register(self.state, request, finish)
        return self._send_student(to, finish) if register else None

    def _enter(self, to: Destination) -> bool:
        """Find or create the run; returns whether it is new, and so has all its tags."""
        found = find_run(to, self.request) if self.state["attempted"] else None
        if found is None:
            tags = self._tags(to, describe=True, end=self.finish is not None)
            self.state["attempted"] = True
            self._save()
            info = create_run(to, self.request, tags=tags)
        else:
            info = found
        self.state |= {
            "run_id": info.run_id,
            "artifact_uri": info.artifact_uri,
            "status": info.status,
        }
        return found is None

    def _tags(self, to: Destination, *, describe: bool, end: bool) -> dict[str, str]:
        tags: dict[str, str] = {}
        if describe:
            tags |= self.request["tags"] | self._parent_tag(to)
        if end and self.finish is not None:
            tags |= self.finish["tags"]
        return tags

    def _parent_tag(self, to: Destination) -> dict[str, str]:
        parent = parent_of(self.run, self.request)
        if parent is None:
            return {}
        request = read_request(parent)
        assert request is not None  # this run's own request could not have been read without it
        run_id = read_state(parent, request).get("run_id")
        if run_id is None:
            report = sync_run(parent, to=to)
            if report.run_id is None:
                raise Unsent(f"{parent.location} must be in MLflow first: {report.pending}")
            run_id = report.run_id
        return {PARENT_TAG: run_id}

    def _end(self, to: Destination, finish: dict[str, Any]) -> str | None:
        # Written before, so that a resume after a crash knows that MLflow may say it has ended.
        self.state["status"] = finish["status"]
        self._save()
        to.client.set_terminated(self.state["run_id"], finish["status"], finish["time_ms"])
        missing = log_files(to, self.state["artifact_uri"], self.run, finish["artifacts"])
        problem = self._send_student(to, finish) if finish["student"] else None
        if missing:
            return f"{', '.join(missing)} should be an artifact and is not in the run's folder"
        if problem is None:
            self.state["finished"] = finish["key"]
        return problem

    def _send_student(self, to: Destination, finish: dict[str, Any]) -> str | None:
        # Imported here: it needs torch, which a run without a student can do without.
        from orchestrator.student_tracking import send_student

        return send_student(
            to,
            self.run,
            request=self.request,
            finish=finish,
            state=self.state,
            journal=self.journal,
        )

    def _save(self) -> None:
        if self.state != self._written:
            self.run.write_json(STATE, self.state)
            self._written = dict(self.state)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0] if text else 'no message'} ({type(error).__name__})"

"""Tracking a run with MLflow. Training writes to the run's folder; one thread brings it to MLflow.

The server may be slow, absent or die: training neither waits for it nor fails because of it. What
could not be sent stays in the run's folder and is sent by the next `sync_run`.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from orchestrator.journal import Journal
from orchestrator.mlflow_sync import SyncReport, sync_run
from orchestrator.storage import Folder
from orchestrator.tracking_files import group_members, has_pending, is_group
from orchestrator.tracking_requests import (
    finish_request,
    register_later,
    reopen,
    request_tracking,
    retarget,
)

__all__ = [
    "SyncReport",
    "Tracker",
    "default_tracking_uri",
    "finish_request",
    "group_members",
    "has_pending",
    "is_group",
    "pending_runs",
    "register_later",
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


def pending_runs(storage: Folder) -> list[str]:
    """Names of the runs in a storage folder with something that MLflow does not have.

    Those of a group are ``GROUP`` itself and then ``GROUP/trials/NAME`` and the like.
    """
    names = []
    for name in storage.names():
        entry = storage / name
        runs = group_members(entry) if is_group(entry) else [entry]
        names += [
            run.location.removeprefix(f"{storage.location}/") for run in runs if has_pending(run)
        ]
    return names


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

"""Tracking a group of runs, such as a search: one thread and one connection for all of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.error_text import cause
from orchestrator.journal import Journal
from orchestrator.mlflow_client import Unsent
from orchestrator.mlflow_run import Destination, open_destination
from orchestrator.mlflow_sync import sync_run
from orchestrator.storage import Folder
from orchestrator.tracking_files import group_members, has_pending, read_request

logger = logging.getLogger(__name__)

_MAX_BACKOFF_S = 30.0
_CLOSING_ATTEMPTS = 2
_FAILURES_IN_A_ROW = 3
"""So many runs that the server refuses one after the other are an outage: the rest may wait."""


class GroupReport(NamedTuple):
    """What was achieved for a group's runs."""

    sent_points: int
    """Points sent, of all runs."""
    pending: dict[str, str]
    """Why something is left to send, by the location of the run."""


def sync_group(group: Folder) -> GroupReport:
    """Send what MLflow does not have yet of a group's runs. Server trouble is reported, not raised.

    Args:
        group: the group's folder.
    """
    outbox = _Outbox(group)
    outbox.put_pending()
    outbox.send()
    return outbox.report()


class GroupTracker:
    """A background thread that keeps MLflow up to date with a group's runs.

    It sends what is marked as changed, and what an earlier session could not send. Runs that are
    sent are forgotten until they change again, so that thousands of them cost nothing.
    """

    def __init__(self, group: Folder, *, interval_s: float = 1.0) -> None:
        """Args:
        group: the group's folder, with `request_tracking` done.
        interval_s: how often to send what has changed.
        """
        self._interval_s = interval_s
        self._outbox = _Outbox(group)
        self._outbox.put(group)
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._thread = threading.Thread(
            target=self._work, name=f"mlflow {group.location}", daemon=True
        )

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def changed(self, run: Folder, journal: Journal | None = None) -> None:
        """Mark a run of the group: something new was written down. Returns at once.

        Args:
            run: the run's folder.
            journal: its journal, when the caller keeps one that has been read already. Two threads
                may read one journal: its files never change, and at worst one is read twice.
        """
        self._outbox.put(run, journal)

    def close(self, timeout_s: float) -> GroupReport:
        """Send what is left and stop.

        Blocks for at most `timeout_s`, less when the server is found dead twice in a row; what the
        server does not take by then is for a later `sync_group`.
        """
        self._closing.set()
        self._thread.join(timeout_s)
        self._given_up.set()
        return self._outbox.report()

    def _work(self) -> None:
        pause_s = self._interval_s
        attempts_left = _CLOSING_ATTEMPTS
        looked_back = False
        while attempts_left > 0:
            closing = self._closing.is_set()
            trouble = self._outbox.send(at_once=closing, stop=self._given_up.is_set)
            if trouble is None:
                pause_s = self._interval_s
                if not looked_back:  # after the first pass, as reading all runs may take a while
                    looked_back = self._look_back()
                    if looked_back:
                        continue
            elif not closing:
                if pause_s == self._interval_s:  # once per outage
                    logger.warning("%s; the runs go on, and it is sent later", trouble)
                pause_s = min(2 * pause_s, _MAX_BACKOFF_S)
            if not closing:
                self._closing.wait(pause_s)
            elif self._outbox.is_empty:
                return
            else:
                attempts_left -= 1
                self._given_up.wait(min(self._interval_s, 1.0) if attempts_left else 0)

    def _look_back(self) -> bool:
        """Take in what earlier sessions left; False when the storage cannot be read just now."""
        try:
            self._outbox.put_pending()
        except OSError:
            logger.debug("cannot read all runs of the group", exc_info=True)
            return False
        return True


@dataclass
class _Letter:
    """A run with something to send."""

    run: Folder
    journal: Journal | None
    marks: int = 0
    """How often it was marked again while it waited."""
    pending: str = "the tracking server was too slow"
    not_before: float = 0.0
    """On the monotonic clock: a run with trouble of its own is not tried all the time."""
    pause_s: float = 1.0


class _Outbox:
    """The runs of a group that have something to send. Any thread may put; one sends."""

    def __init__(self, group: Folder) -> None:
        self._group = group
        self._lock = threading.Lock()
        self._letters: dict[str, _Letter] = {}
        self._sent_points = 0

    @property
    def is_empty(self) -> bool:
        return not self._letters

    def put(self, run: Folder, journal: Journal | None = None) -> None:
        """Have a run sent by the next pass."""
        with self._lock:
            letter = self._letters.setdefault(run.location, _Letter(run, journal))
            letter.journal = journal or letter.journal
            letter.marks += 1
            letter.not_before = 0.0

    def put_pending(self) -> None:
        """Have all runs sent that are behind, whoever left them."""
        for run in group_members(self._group):
            if has_pending(run):
                self.put(run)

    def report(self) -> GroupReport:
        """What was achieved so far."""
        with self._lock:
            left = {location: letter.pending for location, letter in self._letters.items()}
        return GroupReport(self._sent_points, left)

    def send(
        self, *, at_once: bool = False, stop: Callable[[], bool] = lambda: False
    ) -> str | None:
        """Send what has been put, over one connection.

        Args:
            at_once: try runs again now that have failed a moment ago.
            stop: asked between two runs.

        Returns:
            Why nothing can be sent at present, when that is so.
        """
        now = time.monotonic()
        with self._lock:
            letters = [x for x in self._letters.values() if at_once or x.not_before <= now]
        # MLflow must have the parent before its children; what has failed may not hold up the rest.
        letters.sort(key=lambda x: (x.run.location != self._group.location, x.not_before))
        if not letters:
            return None
        try:
            request = read_request(self._group)
            assert request is not None  # a group's own run is tracked before any of its children
            with open_destination(request["uri"]) as to:
                trouble = self._send_each(letters, to, stop)
        except Unsent as reason:
            trouble = str(reason)
        except Exception as error:  # MLflow cannot be imported, or does not open the URI
            logger.debug("no connection for %s", self._group, exc_info=True)
            trouble = f"MLflow: {cause(error)}"
        if trouble is not None:
            for letter in letters:
                letter.pending = trouble
        return trouble

    def _send_each(
        self, letters: list[_Letter], to: Destination, stop: Callable[[], bool]
    ) -> str | None:
        failures = 0
        for letter in letters:
            if stop():
                return None
            marks = letter.marks
            report = sync_run(letter.run, journal=letter.journal, to=to)
            self._sent_points += report.sent_points
            self._settle(letter, marks, report.pending)
            failures = failures + 1 if report.server_failed else 0
            no_parent = letter.run.location == self._group.location and report.run_id is None
            if no_parent or failures == _FAILURES_IN_A_ROW:
                return report.pending
        return None

    def _settle(self, letter: _Letter, marks: int, pending: str | None) -> None:
        """Forget a run that was sent, and put off one that was not, unless it changed meanwhile."""
        with self._lock:
            if pending is not None:
                letter.pending = pending
            if letter.marks != marks:
                return
            if pending is None:
                del self._letters[letter.run.location]
            else:
                letter.not_before = time.monotonic() + letter.pause_s
                letter.pause_s = min(2 * letter.pause_s, _MAX_BACKOFF_S)

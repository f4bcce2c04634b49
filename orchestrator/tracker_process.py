"""A group's tracker in a process of its own: MLflow takes neither time nor memory of the driver.

With thousands of short trials, MLflow's share of the driver's one core is what they would wait for.
The two processes speak in lines of JSON: the driver says which runs have changed, and in the end
how long it waits; the other says what should be logged, and in the end what it has achieved. It
reads the runs' folders itself, and ends with the driver, however that ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from typing import IO, Any

from orchestrator.group_tracking import GroupReport, GroupTracker
from orchestrator.journal import Journal
from orchestrator.storage import Folder

logger = logging.getLogger(__name__)

_JOURNALS = 64
"""Of so many runs the entries that have been read are kept, as those of running trials grow."""
_PARTING_S = 0.3
"""How much longer the process may take to say what it has achieved."""


class TrackerProcess:
    """Keeps MLflow up to date with a group's runs, as `GroupTracker` does, from another process."""

    def __init__(self, group: Folder, *, interval_s: float = 1.0) -> None:
        """Args:
        group: the group's folder, with `request_tracking` done.
        interval_s: how often to send what has changed.
        """
        self._group = group
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._closing = threading.Event()
        self._report: GroupReport | None = None
        self._last_words = ""
        self._process: subprocess.Popen[str] | None = None
        self._threads = [
            threading.Thread(target=target, name=f"{name} {group.location}", daemon=True)
            for name, target in (
                ("tell", self._tell),
                ("hear", self._hear),
                ("stderr", self._hear_errors),
            )
        ]

    def start(self) -> None:
        """Begin to send."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self._group.location, str(self._interval_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for thread in self._threads:
            thread.start()

    def changed(self, run: Folder) -> None:
        """Mark a run of the group: something new was written down. Returns at once."""
        with self._lock:
            self._changed.add(run.location)

    def close(self, timeout_s: float) -> GroupReport:
        """Send what is left and stop.

        Blocks for about `timeout_s` at most, less when the server is found dead twice in a row;
        what the server does not take by then is for a later `sync_group`.
        """
        assert self._process is not None
        tell, hear, errors = self._threads
        self._closing.set()
        tell.join(_PARTING_S)
        self._say({"close": timeout_s})
        hear.join(timeout_s + _PARTING_S)
        slow = hear.is_alive()
        self._process.kill()
        self._process.wait()
        errors.join(_PARTING_S)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            _close(stream)
        if self._report is not None:
            return self._report
        reason = "the tracking server was too slow" if slow else self._death()
        return GroupReport(0, {self._group.location: reason})

    def _tell(self) -> None:
        while True:
            closing = self._closing.wait(self._interval_s / 2)
            with self._lock:
                changed, self._changed = sorted(self._changed), set()
            if changed:
                self._say({"changed": changed})
            if closing:
                return

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # it has ended, which `_hear` says
            logger.debug("nobody hears %s", message)

    def _hear(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "log" in message:
                level, text = message["log"]
                logger.log(level, "%s", text)
            else:
                self._report = GroupReport(message["sent_points"], message["pending"])
                return
        if not self._closing.is_set():
            self._process.wait()
            logger.warning("%s; the runs go on, and `dcd sync` sends it", self._death())

    def _hear_errors(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        for line in self._process.stderr:
            logger.debug("%s", line.rstrip())
            self._last_words = line.strip() or self._last_words

    def _death(self) -> str:
        assert self._process is not None
        said = f": {self._last_words}" if self._last_words else ""
        return f"the process that sends to MLflow ended with {self._process.returncode}{said}"


def _close(stream: IO[str] | None) -> None:
    assert stream is not None
    try:
        stream.close()
    except OSError:  # what was written last finds no reader
        logger.debug("a pipe was broken", exc_info=True)


class _Forward(logging.Handler):
    """Hands log records to the driver."""

    def emit(self, record: logging.LogRecord) -> None:
        _answer({"log": [record.levelno, self.format(record)]})


def _answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    """What the process runs."""
    # The terminal's and the job's signals are for the driver, which may have something left to say.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    location, interval_s = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()])
    tracker = GroupTracker(Folder(location), interval_s=float(interval_s))
    journal = lru_cache(maxsize=_JOURNALS)(_journal)
    tracker.start()
    for line in sys.stdin:
        message = json.loads(line)
        if "close" in message:
            report = tracker.close(message["close"])
            _answer({"sent_points": report.sent_points, "pending": report.pending})
            break
        for changed in message["changed"]:
            tracker.changed(Folder(changed), journal(changed))
    # Without a driver nobody would know; all that is cut off here is done by the next sync.
    os._exit(0)


def _journal(location: str) -> Journal:
    return Journal(Folder(location))


if __name__ == "__main__":
    main()

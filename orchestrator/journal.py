"""The journal of one run: every metric, on disk beside the run before anything else sees it.

One small file per entry, ``journal/000012.json``, never rewritten. A point is known by its name and
step, and the first entry that has it wins, so an epoch that is redone after a crash or a journal
that is sent twice never doubles a point.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.storage import Folder

logger = logging.getLogger(__name__)

RESTARTS = "faults/restarts"
"""Metric: how often lost workers have been replaced, at the epoch after which that was."""

_FILE_NAME = re.compile(r"(\d{6,})\.json")


class Entry(NamedTuple):
    """One call of `Journal.append`."""

    number: int
    """Counted from 1, without gaps."""
    step: int
    """The epoch, counted from 1."""
    timestamp_ms: int
    """When it was written, in milliseconds since 1970."""
    metrics: dict[str, float]
    """Values by metric name; NaN and infinities included."""


class Point(NamedTuple):
    """One value of one metric."""

    name: str
    step: int
    value: float
    timestamp_ms: int


class Journal:
    """The journal of one run. One process appends; any number may read.

    Files do not change once written, so an instance reads each of them once.
    """

    def __init__(self, folder: Folder) -> None:
        """Args:
        folder: the run's folder; the journal lies in ``journal/`` inside.
        """
        self._folder = folder / "journal"
        self._read: dict[int, Entry | None] = {}

    @property
    def last_number(self) -> int:
        """Number of the newest entry; 0 when there is none."""
        return max(self._numbers(), default=0)

    def append(
        self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None
    ) -> None:
        """Write one entry; the time is now unless given."""
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000
        values = {name: float(value) for name, value in metrics.items()}
        self._folder.write_json(
            f"{self.last_number + 1:06d}.json",
            {"step": int(step), "timestamp": timestamp_ms, "metrics": values},
        )

    def append_history(self, history: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Write what is not there yet of (step, metrics) pairs, as after a resume."""
        known = {(point.name, point.step) for point in self.points()}
        for step, metrics in history:
            missing = {name: metrics[name] for name in metrics if (name, step) not in known}
            if missing:
                self.append(missing, step=step)
                known |= {(name, step) for name in missing}

    def read(self, after: int = 0) -> list[Entry]:
        """Entries numbered above ``after``, in order; a damaged one is left out with a warning."""
        return [entry for entry in self._entries() if entry.number > after]

    def points(self, after: int = 0, *, until: int | None = None) -> list[Point]:
        """Points first seen in entries numbered above ``after`` and up to ``until``, in order."""
        known: set[tuple[str, int]] = set()
        points = []
        for entry in self._entries():
            if until is not None and entry.number > until:
                break
            for name, value in entry.metrics.items():
                if (name, entry.step) in known:
                    continue
                known.add((name, entry.step))
                if entry.number > after:
                    points.append(Point(name, entry.step, value, entry.timestamp_ms))
        return points

    def _entries(self) -> Iterator[Entry]:
        for number in self._numbers():
            if number not in self._read:
                self._read[number] = self._load(number)
            entry = self._read[number]
            if entry is not None:
                yield entry

    def _numbers(self) -> list[int]:
        matches = (_FILE_NAME.fullmatch(name) for name in self._folder.names())
        return sorted(int(match[1]) for match in matches if match)

    def _load(self, number: int) -> Entry | None:
        name = f"{number:06d}.json"
        try:
            content: Any = self._folder.read_json(name)
            metrics = {str(key): float(value) for key, value in content["metrics"].items()}
            return Entry(number, int(content["step"]), int(content["timestamp"]), metrics)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s/%s is damaged and left out: %s", self._folder.location, name, error)
            return None

"""What is shown while trials run: a live board on a terminal, a line per trial elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Group as Lines
from rich.live import Live
from rich.text import Text

from orchestrator.progress import Display
from orchestrator.trials.trial import settings_text

_STATES = ("finished", "stopped", "failed")
_WORDS = {"stopped": "stopped early"}


class Board:
    """Counts trials by state, knows the best so far, and estimates when all are through."""

    def __init__(
        self,
        display: Display,
        *,
        what: str,
        total: int,
        epochs: int,
        settings_of: Callable[[str], Mapping[str, Any]],
        higher_is_better: bool | None,
        ended: Mapping[str, tuple[str, float | None]],
        on_change: Callable[[int, float | None], None] = lambda ended, best: None,
    ) -> None:
        """Args:
        display: where to.
        what: what the trials are, for the heading.
        total: how many there will be.
        epochs: of a trial.
        settings_of: what sets a trial apart, by its name.
        higher_is_better: whether a large score is good; None where no best is looked for.
        ended: state and score of the trials of earlier sessions.
        on_change: told how many have ended and the best score, whenever that changes.
        """
        self._display = display
        self._what, self._total, self._epochs = what, total, epochs
        self._settings_of, self._on_change = settings_of, on_change
        self._sign = {True: 1.0, False: -1.0, None: None}[higher_is_better]
        self._counts = Counter(state for state, _ in ended.values())
        self._before = len(ended)
        self._running: dict[str, tuple[int, float | None]] = {}
        self._done_before = 0.0  # of trials that go on, in trials
        self._best: tuple[float, str] | None = None
        for name, (state, score) in ended.items():
            if state != "failed":
                self._consider(name, score)
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if self._display.console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._display.console, refresh_per_second=2
            )
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def started(self, name: str, epoch: int = 0, score: float | None = None) -> None:
        """A trial runs, from the start or on from an epoch that it had reached before."""
        with self._lock:
            self._running[name] = (epoch, score)
            self._done_before += epoch / self._epochs

    def reported(self, name: str, epoch: int, score: float) -> None:
        """An epoch is done."""
        with self._lock:
            self._running[name] = (epoch, score)

    def ended(self, name: str, state: str, score: float | None, message: str | None) -> None:
        """A trial has ended."""
        with self._lock:
            epoch, _ = self._running.pop(name, (0, None))
            self._counts[state] += 1
            if state != "failed":
                self._consider(name, score)
            text = f"{name} {_WORDS.get(state, state)} after epoch {epoch}"
            text += f", {score:.2f}" if score is not None and message is None else ""
            text += f": {message}" if message else f"  {settings_text(self._settings_of(name))}"
            ended = sum(self._counts.values())
            best = self._best[0] if self._best else None
            summary = self._summary()
        self._display.say(text)
        if self._live is None:
            self._display.say(f"  {summary}")
        self._on_change(ended, best)

    def _consider(self, name: str, score: float | None) -> None:
        sign = self._sign
        if score is None or sign is None:
            return
        if self._best is None or sign * score > sign * self._best[0]:
            self._best = (score, name)

    def _summary(self) -> str:
        ended = sum(self._counts.values())
        parts = [f"{ended}/{self._total} {self._what}"]
        parts += [
            f"{self._counts[state]} {_WORDS.get(state, state)}"
            for state in _STATES
            if self._counts[state]
        ]
        parts.append(f"{len(self._running)} running")
        if self._best is not None:
            parts.append(f"best {self._best[0]:.2f} ({self._best[1]})")
        left = self._seconds_left(ended)
        if left is not None and ended < self._total:
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)

    def _seconds_left(self, ended: int) -> float | None:
        """From the epochs done in this session; what was stopped early stands for what will be."""
        done = ended - self._before + sum(e / self._epochs for e, _ in self._running.values())
        left = self._total - self._before - done
        done -= self._done_before
        if done < 0.5:
            return None
        return (time.monotonic() - self._started) / done * left

    def _render(self) -> Lines:
        with self._lock:
            lines = [self._summary()]
            if self._best is not None:
                lines.append(f"  best: {settings_text(self._settings_of(self._best[1]))}")
            for name, (epoch, score) in sorted(self._running.items())[:12]:
                text = f"  {name}  epoch {epoch}/{self._epochs}"
                lines.append(text + (f"  {score:.2f}" if score is not None else ""))
            if len(self._running) > 12:
                lines.append(f"  and {len(self._running) - 12} more")
        return Lines(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"

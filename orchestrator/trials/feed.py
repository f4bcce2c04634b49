"""Where a group's trials come from, and how Ray Tune is fed with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ray.tune.search import Searcher

from orchestrator.spec import Experiment
from orchestrator.trials.trial import INPUTS_KEY

FINISHED: str = Searcher.FINISHED
"""Tells Tune that there will be no other trial."""

_CAPACITY_S = 5.0
"""How long a count of the cluster's room holds."""


class Trial(NamedTuple):
    """A run to be."""

    name: str
    """Of its folder in the group."""
    experiment: Experiment
    settings: dict[str, Any]
    """What sets it apart from the others, by dotted path."""
    details: dict[str, Any]
    """What else is written into ``trial.json``."""
    inputs: str
    """Key of the images and the teacher that it shares with others."""


class Source(Protocol):
    """Says which trial is next, and hears what becomes of them."""

    def next(self) -> Trial | None:
        """The next trial to start; None when there will be no other."""
        ...

    def heard(self, name: str, epoch: int, score: float) -> None:
        """A trial has reported an epoch."""
        ...

    def ended(self, name: str, state: str) -> None:
        """A trial is `finished`, `stopped` or `failed`; its folder has the rest."""
        ...


class ListSource:
    """A fixed list of trials."""

    def __init__(self, trials: list[Trial]) -> None:
        self._trials = list(reversed(trials))

    def next(self) -> Trial | None:
        """The next one of the list."""
        return self._trials.pop() if self._trials else None

    def heard(self, name: str, epoch: int, score: float) -> None:
        """Nothing depends on it."""

    def ended(self, name: str, state: str) -> None:
        """Nothing depends on it."""


class Feed(Searcher):
    """Gives Tune a trial when there is room for one, and never more.

    Tune would otherwise ask for trials ahead of time, before the results that should guide them,
    and place the drivers of trials whose workers find no room any more.
    """

    def __init__(
        self,
        take: Callable[[], Trial | None],
        *,
        room: Callable[[], int],
        halted: Callable[[], bool],
    ) -> None:
        """Args:
        take: the next trial, written down; None when there is no other.
        room: how many trials fit on the cluster as it is now.
        halted: whether no trial shall be started any more.
        """
        super().__init__()
        self._take = take
        self._room = room
        self._halted = halted
        self._counted = (0, float("-inf"))
        self._running: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for a restoration that never comes

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The configuration of the next trial."""
        if self._halted():
            return FINISHED
        if len(self._running) >= self._capacity():
            return None
        trial = self._take()
        if trial is None:
            return FINISHED
        self._running.add(trial_id)
        return {"name": trial.name, INPUTS_KEY: trial.inputs}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Makes room for another."""
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders are the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for `save`."""

    def _capacity(self) -> int:
        count, at = self._counted
        if time.monotonic() - at > _CAPACITY_S:
            count, at = self._room(), time.monotonic()
            self._counted = count, at
        return count

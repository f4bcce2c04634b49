"""A search as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

STATES = ("finished", "stopped", "failed", "interrupted", "running")
LATENCY = "latency_ms"
"""In `TrialRow.extra`: measured after the search."""


class TrialRow(NamedTuple):
    """One trial of a search."""

    number: int
    """In the order of start."""
    settings: Mapping[str, Any]
    """What it was given of the searched settings, by dotted path; under PBT, at its start."""
    state: str
    """One of `STATES`; `stopped` is early, by the scheduler."""
    scores: Mapping[int, float]
    """By epoch, counted from 1: the score of the student that the trial would have kept then."""
    score: float | None
    """That of the student that it keeps; None when it has none."""
    epochs: int
    """How many are done."""
    seconds: float | None
    error: str | None
    extra: Mapping[str, float]
    """Other goals by the last part of their name, such as `parameters`; `latency_ms`."""

    @property
    def value(self) -> float | None:
        """The score, when it is a finite number."""
        return self.score if self.score is not None and math.isfinite(self.score) else None

    def score_at(self, epoch: int) -> float | None:
        """The score of the student kept at an epoch; None when the trial did not get there."""
        known = [e for e in self.scores if e <= epoch and math.isfinite(self.scores[e])]
        return self.scores[max(known)] if known and self.epochs >= epoch else None


class FinalRow(NamedTuple):
    """One full-budget run of the winner."""

    seed: int
    val: float
    """The search's metric, on the validation split; NaN unless finished."""
    test: float | None
    """The same metric on the test split."""
    state: str
    error: str | None


class SearchRecord(NamedTuple):
    """All that is told of a search."""

    name: str
    space: str
    """Name of the search space."""
    title: str
    """What the space is."""
    metric: str
    """Main goal, which a trial's score is."""
    higher_is_better: bool
    goals: Sequence[tuple[str, str]]
    """Metric and mode (`max`, `min`) of all goals, the main one first."""
    scheduler: str
    """`asha`, `median`, `pbt` or `none`."""
    searcher: str
    domains: Mapping[str, str]
    """Kind of each searched setting's domain, such as `loguniform`, by dotted path."""
    epochs: int
    """Budget of a trial."""
    finals_differ: str | None
    """In what the final runs were trained otherwise than the trials; None when in nothing."""
    rungs: Sequence[int]
    """Epochs after which successive halving compared trials."""
    trials: Sequence[TrialRow]
    first: int | None
    """Number of the trial at the default point."""
    winner: int | None
    """Number of the best trial; None when none finished."""
    finals: Sequence[FinalRow]
    facts: Mapping[str, str]
    """What else is worth knowing, by name."""
    notes: Sequence[str]
    """Sentences that the reader should not miss."""
    mutations: Sequence[Mapping[str, Any]]
    """What PBT changed, in order: `epoch` of the checkpoint that was taken over, number of the
    `trial` and of the `donor`, `setting`, its `new` value."""

    def trial(self, number: int | None) -> TrialRow | None:
        """A trial by its number."""
        return next((trial for trial in self.trials if trial.number == number), None)

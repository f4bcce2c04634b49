"""A search's trials as they are ranked: read from their folders, scored by the space's goals."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.search.study import Tried
from orchestrator.trials.group import Record, best_so_far
from search_spaces import Space

PARAMETERS = "student/parameters"
"""Goal: number of the student's parameters; known before it is trained."""

LATENCY = "student/latency_ms"
"""Metric: milliseconds for one image, measured after the search."""


def score(record: Record, space: Space) -> float | None:
    """The main goal's value of the student that a trial has kept so far."""
    if record.state == "finished":  # under PBT the student may be older than the trial's own epochs
        return record.result[space.goals[0].metric]
    scores = best_so_far(record.history, space.goals[0].metric)
    return scores[max(scores)] if scores else None


def goal_values(record: Record, space: Space) -> list[float] | None:
    """One value per goal; None unless the trial is finished."""
    if record.state != "finished":
        return None
    values = []
    for goal in space.goals:
        if goal.metric == PARAMETERS:
            values.append(float(record.details[PARAMETERS]))
        else:
            values.append(record.result[goal.metric])
    return values


def tried(record: Record, space: Space) -> Tried:
    """A trial for the study."""
    return Tried(
        name=record.name,
        settings=record.settings,
        scores=best_so_far(record.history, space.goals[0].metric),
        values=goal_values(record, space),
        failed=record.state == "failed",
        ended=record.ended,
    )


def winner(records: Sequence[Record], space: Space) -> Record | None:
    """The finished trial that is best by the main goal; of equals the first."""
    best: tuple[float, Record] | None = None
    sign = 1.0 if space.goals[0].mode == "max" else -1.0
    for record in records:
        value = score(record, space) if record.state == "finished" else None
        if value is not None and (best is None or sign * value > best[0]):
            best = sign * value, record
    return best[1] if best else None

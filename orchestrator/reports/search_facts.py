"""What can be worked out of a search's values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.reports.paired import pareto_front, spearman
from orchestrator.reports.search import LATENCY, STATES, FinalRow, SearchRecord, TrialRow
from orchestrator.reports.tables import mean

_ENOUGH = 8
"""So many trials before the effect of settings is looked at."""


class Gap(NamedTuple):
    """Score of the winner in the search against its final runs."""

    search: float
    final: float
    """Mean over the seeds that finished."""
    n: int


class Stage(NamedTuple):
    """A part of a trial's training under PBT."""

    start: int
    """First epoch with these settings."""
    trial: int
    """The trial that ran it."""
    settings: Mapping[str, Any]


class Snapshot(NamedTuple):
    """Scores of many trials after the same number of epochs."""

    epoch: int
    scores: Mapping[int, float]
    """By the number of the trial."""


def best_first(r: SearchRecord) -> list[TrialRow]:
    """Trials with a score: the finished ones by score, then the others by how far they came."""
    sign = -1 if r.higher_is_better else 1
    scored = [(trial, trial.value) for trial in r.trials]
    ranked = sorted(
        ((t, v) for t, v in scored if v is not None),
        key=lambda pair: (
            pair[0].state != "finished",
            0 if pair[0].state == "finished" else -pair[0].epochs,
            sign * pair[1],
        ),
    )
    return [trial for trial, _ in ranked]


def count_states(r: SearchRecord) -> dict[str, int]:
    """How many trials are in each state that occurs."""
    states = [trial.state for trial in r.trials]
    return {state: states.count(state) for state in STATES if state in states}


def finished_finals(r: SearchRecord) -> list[FinalRow]:
    """The final runs that have a validation score."""
    return [f for f in r.finals if f.state == "finished" and math.isfinite(f.val)]


def final_gap(r: SearchRecord) -> Gap | None:
    """How much better the winner looked in the search; None without a winner or final runs."""
    winner, finals = r.trial(r.winner), [final.val for final in finished_finals(r)]
    final = mean(finals)
    if winner is None or winner.value is None or final is None:
        return None
    return Gap(winner.value, final, len(finals))


def rung_correlations(r: SearchRecord) -> list[tuple[int, int, float | None]]:
    """For each rung: its epoch, how many trials got to the end, and the rank correlation of their
    scores at the rung with those at the end."""
    rows = []
    for rung in r.rungs:
        pairs = [
            (early, trial.value)
            for trial in r.trials
            if trial.state == "finished" and trial.value is not None
            if (early := trial.score_at(rung)) is not None
        ]
        rho = spearman([early for early, _ in pairs], [late for _, late in pairs])
        rows.append((rung, len(pairs), rho))
    return rows


def snapshot(r: SearchRecord) -> Snapshot:
    """Scores after as many epochs as possible such that enough trials got there.

    Scores after different numbers of epochs say more about the epochs than about the settings, so
    settings are looked at after the end, or the last rung that at least 8 trials reached; where
    there is none, after the earliest of them.
    """
    found = Snapshot(r.epochs, {})
    for epoch in sorted({*r.rungs, r.epochs}, reverse=True):
        scores = {t.number: v for t in r.trials if (v := t.score_at(epoch)) is not None}
        if scores:
            found = Snapshot(epoch, scores)
        if len(scores) >= _ENOUGH:
            break
    return found


def has_enough(found: Snapshot) -> bool:
    """Whether a snapshot holds enough trials to look at the effect of settings."""
    return len(found.scores) >= _ENOUGH


def searched_settings(r: SearchRecord) -> list[str]:
    """Paths of all settings that had more than one value, in order of appearance."""
    values: dict[str, list[Any]] = {}
    for trial in r.trials:
        for path, value in trial.settings.items():
            values.setdefault(path, []).append(value)
    return [path for path, found in values.items() if any(v != found[0] for v in found)]


def setting_values(r: SearchRecord, path: str, found: Snapshot) -> list[tuple[Any, TrialRow]]:
    """A setting's value in each trial of a snapshot that has it."""
    return [
        (trial.settings[path], trial)
        for trial in r.trials
        if trial.number in found.scores and path in trial.settings
    ]


def short_name(path: str, paths: Sequence[str]) -> str:
    """The last part of a setting's path, where that tells it from all the others."""
    last = path.rpartition(".")[2]
    return last if sum(p.rpartition(".")[2] == last for p in paths) == 1 else path


def is_number(value: Any) -> bool:
    """Whether a setting's value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def grouped_errors(r: SearchRecord) -> list[tuple[str, list[int]]]:
    """Each error and the trials that failed with it, the commonest first."""
    groups: dict[str, list[int]] = {}
    for trial in r.trials:
        if trial.state == "failed":
            error = " ".join((trial.error or "no error was recorded").split())
            groups.setdefault(error, []).append(trial.number)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def goal_value(r: SearchRecord, trial: TrialRow, metric: str) -> float | None:
    """What a trial reached in one of the goals."""
    value = trial.value if metric == r.metric else trial.extra.get(metric.rpartition("/")[2])
    return value if value is not None and math.isfinite(value) else None


def front(r: SearchRecord, *goals: tuple[str, str]) -> tuple[list[TrialRow], list[TrialRow]]:
    """The finished trials that have all these goals, and those of them on the Pareto front."""
    known, points = [], []
    for trial in r.trials:
        values = [goal_value(r, trial, metric) for metric, _ in goals]
        if trial.state == "finished" and None not in values:
            known.append(trial)
            points.append([value for value in values if value is not None])
    best = [known[index] for index in pareto_front(points, [mode for _, mode in goals])]
    return known, best


def fronts(r: SearchRecord) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs of goals to draw a front of: the main one with each other, and with the latency."""
    others = list(r.goals[1:])
    if others and any(LATENCY in trial.extra for trial in r.trials):
        others.append((LATENCY, "min"))
    return [(r.goals[0], other) for other in others]


def figure_names(r: SearchRecord) -> list[str]:
    """The figures that apply to a search."""
    applies = {
        "history": any(trial.value is not None for trial in r.trials),
        "curves": any(trial.value is not None and trial.scores for trial in r.trials),
        "settings": r.scheduler != "pbt" and bool(searched_settings(r) and snapshot(r).scores),
        "pareto": bool(fronts(r)),
        "schedule": r.scheduler == "pbt" and r.winner is not None,
    }
    return [name for name, it_does in applies.items() if it_does]


def lineage(r: SearchRecord, number: int) -> list[Stage]:
    """How a trial's student came about under PBT: its stages, through the trials it came from."""
    return _stages(r, number, before=None)


def _stages(r: SearchRecord, number: int, *, before: int | None) -> list[Stage]:
    own = [
        m for m in r.mutations if m["trial"] == number and (before is None or m["epoch"] < before)
    ]
    if not own:
        trial = r.trial(number)
        return [Stage(1, number, dict(trial.settings) if trial is not None else {})]
    epoch, donor = own[-1]["epoch"], own[-1]["donor"]
    changed = {m["setting"]: m["new"] for m in own if (m["epoch"], m["donor"]) == (epoch, donor)}
    # What the donor itself took over at that epoch or later is not in the checkpoint it gave.
    earlier = _stages(r, donor, before=epoch)
    return [*earlier, Stage(epoch + 1, number, {**earlier[-1].settings, **changed})]

"""What a search tells of its method: early stopping, settings, several goals, schedules."""

from __future__ import annotations

import math

from orchestrator.reports.paired import spearman
from orchestrator.reports.search import LATENCY, SearchRecord
from orchestrator.reports.search_facts import (
    front,
    fronts,
    goal_value,
    has_enough,
    is_number,
    lineage,
    rung_correlations,
    searched_settings,
    setting_values,
    short_name,
    snapshot,
)
from orchestrator.reports.tables import (
    NOTHING,
    Section,
    Table,
    format_goal,
    format_score,
    format_setting,
    mean,
    setting_cell,
    unit_of,
)

_ENOUGH_FOR_RANKS = 5
"""With fewer trials, any order of them is too likely by chance."""


def rungs_section(r: SearchRecord) -> Section | None:
    """Whether early scores foretold the final ones."""
    if not r.rungs:
        return None
    rows, few = [], False
    for rung, n, rho in rung_correlations(r):
        few |= rho is None
        rows.append([str(rung), str(n), NOTHING if rho is None else f"{rho:+.2f}"])
    sentences = [
        "Rank correlation (Spearman) between the score at each rung and the final score, over the "
        "trials that reached the end. Near +1, stopping at that rung keeps the right trials; near "
        "0 it is chance. Only trials that were not stopped are in it, and those are more alike "
        "than all of them were, which usually makes it too low. A late rung's score can be the "
        "final one already."
    ]
    if few:
        sentences.append(
            "Where there is none, fewer than three trials reached the end, or all scored the same."
        )
    return Section(
        "Early stopping", sentences, Table(["after epoch", "trials", "rank correlation"], rows)
    )


def settings_section(r: SearchRecord) -> Section | None:
    """How the score went with each setting."""
    paths, found = searched_settings(r), snapshot(r)
    if not paths or r.scheduler == "pbt":  # where no trial keeps what it started with
        return None
    if not has_enough(found):
        text = f"Too few trials to say: {len(found.scores)} have a score to compare."
        return Section("Which settings mattered", [text])
    unit, rows = unit_of(r.metric), []
    for path in paths:
        pairs = setting_values(r, path, found)
        scores = [found.scores[trial.number] for _, trial in pairs]
        if pairs and all(is_number(value) for value, _ in pairs):
            values = [value for value, _ in pairs]
            rho = spearman(values, scores) if len(pairs) >= _ENOUGH_FOR_RANKS else None
            if rho is None:
                rows.append((0.0, [path, str(len(pairs)), NOTHING, NOTHING, ""]))
                continue
            chance = 1.96 / math.sqrt(len(pairs) - 1)
            cells = [path, str(len(pairs)), f"{rho:+.2f}", f"±{chance:.2f}", ""]
            rows.append((abs(rho) / chance, cells))
            continue
        groups: dict[str, list[float]] = {}
        for (value, _), score in zip(pairs, scores, strict=True):
            groups.setdefault(format_setting(value), []).append(score)
        means = ", ".join(
            f"{value} {format_score(mean(group), unit)} (n = {len(group)})"
            for value, group in groups.items()
        )
        rows.append((-1.0, [path, str(len(pairs)), NOTHING, NOTHING, means or NOTHING]))
    rows.sort(key=lambda row: -row[0])
    better = "higher" if r.higher_is_better else "lower"
    text = (
        f"Over the {len(found.scores)} trials that reached epoch {found.epoch}, with their best "
        f"{r.metric} by then ({better} is better): the rank correlation (Spearman) of a numeric "
        f"setting with the score, from {_ENOUGH_FOR_RANKS} trials on, or the mean score by value. "
        "By chance alone one setting in twenty has a correlation beyond the limit beside it. The "
        "searcher does not place trials at random, and a setting whose best value is in the middle "
        "correlates little: these are hints, not effects."
    )
    header = ["setting", "trials", "rank correlation", "by chance", "mean by value"]
    return Section("Which settings mattered", [text], Table(header, [row for _, row in rows]))


def pareto_sections(r: SearchRecord) -> list[Section]:
    """For each second goal, the trials that none beats in both."""
    sections = []
    for main, other in fronts(r):
        known, best = front(r, main, other)
        sign = -1 if other[1] == "max" else 1
        best = sorted(best, key=lambda t: sign * (goal_value(r, t, other[0]) or 0.0))
        paths = searched_settings(r)
        rows = [
            [
                str(trial.number),
                *(format_goal(goal_value(r, trial, m), m) for m in (main[0], other[0])),
                *(setting_cell(trial.settings, path) for path in paths),
            ]
            for trial in best
        ]
        header = ["trial", main[0], other[0], *(short_name(path, paths) for path in paths)]
        text = (
            f"{len(best)} of {len(known)} finished trials: no other is better in one goal and as "
            "good in the other."
        )
        if other[0] == LATENCY:
            text += " Latency in milliseconds, measured after the search."
        title = f"Pareto front: {main[0]} and {other[0]}"
        sections.append(Section(title, [text], Table(header, rows) if rows else None))
    return sections


def schedule_section(r: SearchRecord) -> Section | None:
    """PBT: the weights by epoch that made the winner."""
    if r.scheduler != "pbt":
        return None
    exploits = len({(m["trial"], m["epoch"], m["donor"]) for m in r.mutations})
    text = f"Trials took over a better one's student and changed its weights {exploits} times."
    if r.winner is None:
        return Section("Schedule of weights", [text])
    stages = lineage(r, r.winner)
    paths = list(dict.fromkeys(path for stage in stages for path in stage.settings))
    rows = [
        [
            str(stage.start),
            str(stage.trial),
            *(setting_cell(stage.settings, path) for path in paths),
        ]
        for stage in stages
    ]
    text += (
        " The winner's student came about with these weights, each row from the beginning of its "
        "epoch on; as `objective.schedule` they repeat it without a population."
    )
    header = ["from epoch", "in trial", *(short_name(path, paths) for path in paths)]
    return Section("Schedule of weights", [text], Table(header, rows))

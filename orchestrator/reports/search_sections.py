"""What is worth saying of a search, section by section."""

from __future__ import annotations

import math

from orchestrator.reports.search import SearchRecord, TrialRow
from orchestrator.reports.search_facts import (
    best_first,
    final_gap,
    finished_finals,
    goal_value,
    grouped_errors,
    searched_settings,
    short_name,
)
from orchestrator.reports.tables import (
    Section,
    Table,
    deviation,
    difference_unit,
    format_difference,
    format_goal,
    format_score,
    mean,
    setting_cell,
    shorten,
    unit_of,
)

_TOP = 10


def winner_section(r: SearchRecord) -> Section:
    """The best trial and its settings beside those of the default point."""
    winner, first = r.trial(r.winner), r.trial(r.first)
    if winner is None:
        return Section("Winner", ["No trial finished, so there is no winner."])
    if first is winner:
        sentence = f"Trial {winner.number}, the default point itself, is the best: "
    else:
        sentence = f"Trial {winner.number} is the best: "
    sentences = [f"{sentence}{r.metric} {_with_unit(r, winner.value)}."]
    if first is not None and first is not winner:
        sentences.append(_against_first(r, winner, first))
    trials = [winner] if first is None or first is winner else [winner, first]
    setting = "setting at the start" if r.scheduler == "pbt" else "setting"
    header = [setting, f"trial {winner.number}", "default point"][: 1 + len(trials)]
    paths = dict.fromkeys(path for trial in trials for path in trial.settings)
    rows = [[path, *(setting_cell(trial.settings, path) for trial in trials)] for path in paths]
    return Section("Winner", sentences, Table(header, rows) if rows else None)


def trials_section(r: SearchRecord) -> Section | None:
    """The best ten trials."""
    trials = best_first(r)[:_TOP]
    if not trials:
        return None
    goals = r.goals[1:]
    paths = searched_settings(r)
    header = ["trial", "state", "epochs", r.metric, *(metric for metric, _ in goals)]
    header += [short_name(path, paths) for path in paths]
    rows = [
        [
            str(trial.number),
            trial.state,
            str(trial.epochs),
            format_score(trial.value, unit_of(r.metric)),
            *(format_goal(goal_value(r, trial, m), m) for m, _ in goals),
            *(setting_cell(trial.settings, path) for path in paths),
        ]
        for trial in trials
    ]
    text = (
        "Finished trials by score, then the others by how far they came: a score after fewer "
        "epochs does not compare."
    )
    return Section("Best trials", [text], Table(header, rows))


_WORTH = (
    "The final runs have fresh seeds, but the settings were chosen on the same validation images: "
    "the test column is what to quote."
)


def finals_section(r: SearchRecord) -> Section | None:
    """Final runs of the winner, and how far the search flattered it."""
    if not r.finals:
        return None
    unit, finished = unit_of(r.metric), finished_finals(r)
    rows = [
        [str(f.seed), format_score(f.val, unit), format_score(f.test, unit), f.state]
        for f in r.finals
    ]
    vals = [final.val for final in finished]
    tests = [f.test for f in finished if f.test is not None and math.isfinite(f.test)]
    for name, function in (("mean", mean), ("sd", deviation)):
        cells = [format_score(function(values), unit) for values in (vals, tests)]
        rows.append([name, *cells, ""])
    split, _, name = r.metric.rpartition("/")
    test = f"test/{name}" if split == "val" else "test"
    sentences = [
        f"The winner's settings, trained on the whole budget with {len(r.finals)} seed"
        f"{'' if len(r.finals) == 1 else 's'}, {len(finished)} finished."
    ]
    gap = final_gap(r)
    if gap is not None:
        sentences += _gap_sentences(r, gap.search, gap.final, gap.n)
    sentences += [
        f"Seed {f.seed} failed: {shorten(f.error)}" for f in r.finals if f.error is not None
    ]
    return Section("Final runs", sentences, Table(["seed", r.metric, test, "state"], rows))


def failures_section(r: SearchRecord) -> Section | None:
    """Failed trials by their error."""
    groups = grouped_errors(r)
    if not groups:
        return None
    failed, n = sum(len(numbers) for _, numbers in groups), len(r.trials)
    text = f"{failed} of {n} trial{'' if n == 1 else 's'} failed."
    if len(groups) == 1 and failed == n:
        text = f"All {n} trials failed with the same error." if n > 1 else "The only trial failed."
    rows = [[str(len(numbers)), _some(numbers), shorten(error)] for error, numbers in groups]
    return Section("Failed trials", [text], Table(["count", "trials", "error"], rows))


def _against_first(r: SearchRecord, winner: TrialRow, first: TrialRow) -> str:
    if first.state != "finished" or first.value is None or winner.value is None:
        state = {"stopped": "was stopped early", "failed": "failed"}.get(first.state, first.state)
        return f"The default point (trial {first.number}) {state} after {first.epochs} epochs."
    change = format_difference(winner.value - first.value, unit_of(r.metric))
    return (
        f"The default point (trial {first.number}) has {_with_unit(r, first.value)}; the winner "
        f"differs by {change}{difference_unit(unit_of(r.metric))}, one run against one: "
        "`dcd compare` with several seeds tells whether it is better."
    )


def _gap_sentences(r: SearchRecord, search: float, final: float, n: int) -> list[str]:
    unit = unit_of(r.metric)
    change = search - final if r.higher_is_better else final - search
    by = f"{format_score(abs(change), unit)}{difference_unit(unit)}"
    facts = (
        f"In the search the winner had {_with_unit(r, search)}, its {n} final run"
        f"{'' if n == 1 else 's'} {_with_unit(r, final)} on average"
    )
    if r.finals_differ is not None:
        return [
            f"{facts}, {by} {'better' if change < 0 else 'worse'}. They were trained otherwise, "
            f"{r.finals_differ}, so the difference is not the search's luck alone."
            if change
            else f"{facts}, trained otherwise: {r.finals_differ}.",
            _WORTH,
        ]
    if change > 0:
        sentences = [f"{facts}: the search score was {by} too optimistic."]
    elif change < 0:
        sentences = [
            f"{facts}: the search score was not optimistic, the final runs are {by} better."
        ]
    else:
        sentences = [f"{facts}: the search score was not optimistic."]
    count = sum(trial.state == "finished" for trial in r.trials)
    if count > 1:
        sentences.append(f"As a rule the best of {count} scores is chosen for its luck as well.")
    return [*sentences, _WORTH]


def _with_unit(r: SearchRecord, value: float | None) -> str:
    unit = unit_of(r.metric)
    return f"{format_score(value, unit)}{unit and f' {unit}'}"


def _some(numbers: list[int]) -> str:
    text = ", ".join(map(str, numbers[:8]))
    return text if len(numbers) <= 8 else f"{text}, ..."

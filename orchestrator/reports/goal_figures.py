"""Pictures of searches that ask for more than one best point: several goals, and schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from orchestrator.reports.canvas import (
    BLUE,
    DARK,
    GREY,
    ORANGE,
    log_if_wide,
    new_figure,
    plain,
    png,
    scatter,
    score_label,
    tidy,
    whole_numbers,
    wrapped,
)
from orchestrator.reports.search import LATENCY, SearchRecord, TrialRow
from orchestrator.reports.search_facts import front, fronts, goal_value, lineage, searched_settings
from orchestrator.reports.tables import format_setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {LATENCY: "latency, ms", "student/parameters": "student's parameters"}


def draw_pareto(r: SearchRecord) -> bytes:
    """Finished trials by the main goal and each other one, with the front."""
    pairs = fronts(r)
    figure = new_figure(max(6.5, 5.2 * len(pairs)), 4.4, f"{r.name}: what is given up for what")
    grid = figure.subplots(1, len(pairs), sharey=True, squeeze=False)
    for axes, (main, other) in zip(grid.flat, pairs, strict=True):
        _draw_front(axes, r, main, other)
        tidy(axes, grid="both")
        axes.set_xlabel(plain(f"{_NAMES.get(other[0], other[0])} ({_better(other[1])} is better)"))
    grid[0, 0].set_ylabel(score_label(r.metric, r.higher_is_better))
    return png(figure)


def draw_schedule(r: SearchRecord) -> bytes:
    """The settings by epoch that made the winner of a population."""
    assert r.winner is not None, "only a search with a winner has a schedule to draw"
    stages = lineage(r, r.winner)
    paths = list(dict.fromkeys(path for stage in stages for path in stage.settings))
    winner = r.trial(r.winner)
    last = max(winner.epochs if winner is not None else 0, stages[-1].start)
    figure = new_figure(
        8, 1.3 + 1.25 * len(paths), f"{r.name}: weights by epoch of the winner's student"
    )
    grid = figure.subplots(len(paths), 1, sharex=True, squeeze=False)
    for axes, path in zip(grid.flat, paths, strict=True):
        points = [(s.start, s.settings[path]) for s in stages if path in s.settings]
        points.append((last + 1, points[-1][1]))
        axes.step(*zip(*points, strict=True), where="post", color=BLUE, linewidth=2)
        values = [value for _, value in points]
        log_if_wide(axes.yaxis, values)
        axes.margins(y=0.25)
        for stage in stages[1:]:
            axes.axvline(stage.start, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axes.set_title(plain(path), loc="left", fontsize=9, color=DARK)
        tidy(axes)
    top, bottom = grid[0, 0], grid[-1, 0]
    ends = [stage.start for stage in stages[1:]] + [last + 1]
    for stage, end in zip(stages, ends, strict=True):
        if end - stage.start > 0.08 * last:  # else there is no room for its name
            top.text(stage.start, 1.02, f" trial {stage.trial}", fontsize=7.5, color=GREY,
                     transform=top.get_xaxis_transform(), va="bottom")  # fmt: skip
    top.set_title(top.get_title(loc="left"), loc="left", fontsize=9, color=DARK, pad=14)
    bottom.set_xlabel("epoch")
    bottom.set_xlim(1, last + 1)
    whole_numbers(bottom.xaxis)
    return png(figure)


def _draw_front(axes: Axes, r: SearchRecord, main: tuple[str, str], other: tuple[str, str]) -> None:
    known, best = front(r, main, other)
    if not known:
        axes.text(0.5, 0.5, "no finished trial has both", transform=axes.transAxes, fontsize=8,
                  color=GREY, ha="center", va="center")  # fmt: skip
        return
    points = {t.number: _point(r, t, main, other) for t in known}
    log_if_wide(axes.xaxis, [x for x, _ in points.values()])
    beaten = [points[t.number] for t in known if t not in best]
    if beaten:
        scatter(axes, beaten, s=26, color=GREY, alpha=0.7, linewidth=0)
    line = sorted(points[t.number] for t in best)
    # A step: between two points of the front nothing is known to be reached but the worse of them.
    where: Literal["post", "pre"] = "post" if other[1] == "min" else "pre"
    axes.step(*zip(*line, strict=True), where=where, color=BLUE, linewidth=1.2, alpha=0.6)
    scatter(axes, line, s=40, color=BLUE, zorder=3)
    if r.first in points:
        axes.scatter(*points[r.first], s=110, facecolor="none", edgecolor=ORANGE, linewidth=1.4)
    axes.margins(x=0.2, y=0.12)
    side, shift = ("right", -6) if other[1] == "min" else ("left", 6)  # where no trial can be
    for trial in best:
        axes.annotate(plain(_label(r, trial)), points[trial.number], xytext=(shift, 5),
                      textcoords="offset points", fontsize=7.5, color=DARK, ha=side)  # fmt: skip


def _point(
    r: SearchRecord, trial: TrialRow, main: tuple[str, str], other: tuple[str, str]
) -> tuple[float, float]:
    x, y = goal_value(r, trial, other[0]), goal_value(r, trial, main[0])
    assert x is not None
    assert y is not None
    return x, y


def _label(r: SearchRecord, trial: TrialRow) -> str:
    """The value of the only searched setting, else the trial's number."""
    paths = searched_settings(r)
    name = f"trial {trial.number}"
    if len(paths) == 1 and paths[0] in trial.settings:
        name = wrapped(format_setting(trial.settings[paths[0]]), 24, 1)
    return f"{name} (default)" if trial.number == r.first else name


def _better(mode: str) -> str:
    return "higher" if mode == "max" else "lower"

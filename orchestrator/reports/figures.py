"""The pictures of a search: all that apply, and those of its course."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.reports.canvas import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    apart,
    new_figure,
    png,
    scatter,
    score_label,
    tidy,
    whole_numbers,
)
from orchestrator.reports.goal_figures import draw_pareto, draw_schedule
from orchestrator.reports.search import SearchRecord
from orchestrator.reports.search_facts import figure_names
from orchestrator.reports.settings_figure import draw_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {
    "finished": ("o", BLUE, BLUE, "finished"),
    "stopped": ("v", "white", GREY, "stopped early: score so far"),
    "failed": ("X", ORANGE, ORANGE, "failed"),
    "interrupted": ("s", "white", DARK, "interrupted"),
    "running": ("D", "white", GREEN, "running"),
}
"""By state: marker, its inside and its edge, and what the legend calls it."""


def search_figures(r: SearchRecord) -> dict[str, bytes]:
    """PNG files of the figures that apply, by name."""
    draw = {
        "history": draw_history,
        "curves": draw_curves,
        "settings": draw_settings,
        "pareto": draw_pareto,
        "schedule": draw_schedule,
    }
    return {name: draw[name](r) for name in figure_names(r)}


def draw_history(r: SearchRecord) -> bytes:
    """Score of each trial in the order of start, and the best finished one so far."""
    figure = new_figure(8, 4.2, f"{r.name}: score of each trial")
    axes = figure.subplots()
    for state, (marker, fill, edge, label) in _MARKERS.items():
        trials = [t for t in r.trials if t.state == state]
        style = {"marker": marker, "s": 38, "facecolor": fill, "edgecolor": edge, "zorder": 3}
        points = [(t.number, t.value) for t in trials if t.value is not None]
        missing = [t.number for t in trials if t.value is None]
        if missing:  # a trial without a score is still a trial
            label += " (on the lower edge: no score)"
            on_edge = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            name = None if points else label
            scatter(axes, [(number, 0) for number in missing], label=name, **on_edge, **style)
        if points:
            scatter(axes, points, label=label, **style)
    _draw_best_so_far(axes, r)
    _name_special(axes, r)
    axes.set_xlabel("trial")
    axes.set_ylabel(score_label(r.metric, r.higher_is_better))
    whole_numbers(axes.xaxis)
    axes.margins(x=0.04, y=0.14)
    tidy(axes)
    figure.legend(loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    return png(figure)


def draw_curves(r: SearchRecord) -> bytes:
    """Score of the student kept so far: a line for each trial, rungs as vertical lines."""
    figure = new_figure(8, 4.2, f"{r.name}: score of the student kept, by epoch")
    axes = figure.subplots()
    names = {r.first: ("default point", ORANGE), r.winner: ("winner", BLUE)}
    if r.first == r.winner:
        names = {r.winner: ("winner: the default point", BLUE)}
    labels = []
    for trial in r.trials:
        points = sorted(trial.scores.items())
        if not points:
            continue
        name, color = names.get(trial.number, (None, LIGHT))
        width, order = (2.0, 3) if name else (0.9, 2)
        axes.plot(*zip(*points, strict=True), color=color, linewidth=width, zorder=order)
        axes.scatter(*points[-1], s=16, marker=_MARKERS[trial.state][0], zorder=4,
                     color=color if name else GREY)  # fmt: skip
        if name:
            labels.append((*points[-1], name, color))
    for rung in r.rungs:
        axes.axvline(rung, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axes.text(rung, 1.01, f"rung\n{rung}", transform=axes.get_xaxis_transform(), fontsize=7.5,
                  color=GREY, ha="center", va="bottom", linespacing=1.0)  # fmt: skip
    low, high = axes.get_ylim()
    heights = apart([y for _, y, _, _ in labels], (high - low) * 0.055)
    for (x, _, name, color), y in zip(labels, heights, strict=True):
        axes.annotate(name, (x, y), xytext=(8, 0), textcoords="offset points", fontsize=8,
                      color=color, va="center", annotation_clip=False)  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel(score_label(r.metric, r.higher_is_better))
    axes.set_xlim(0.5, max(r.epochs, 1) + 0.5)
    whole_numbers(axes.xaxis)
    tidy(axes)
    return png(figure)


def _draw_best_so_far(axes: Axes, r: SearchRecord) -> None:
    best: list[tuple[int, float]] = []
    for trial in r.trials:
        if trial.state == "finished" and trial.value is not None:
            last = best[-1][1] if best else trial.value
            top = max(last, trial.value) if r.higher_is_better else min(last, trial.value)
            best.append((trial.number, top))
    if best:
        best.append((max(trial.number for trial in r.trials), best[-1][1]))
        axes.step(*zip(*best, strict=True), where="post", color=BLUE, linewidth=1.2, alpha=0.6,
                  label="best finished so far", zorder=2)  # fmt: skip


def _name_special(axes: Axes, r: SearchRecord) -> None:
    """Ring the winner and the default point and name them."""
    first, winner = r.trial(r.first), r.trial(r.winner)
    named = [(winner, "winner", 9), (first, "default point", -16)]
    if first is winner:
        named = [(winner, "winner: the default point", 9)]
    numbers = [trial.number for trial in r.trials]
    for trial, name, above in named:
        if trial is None or trial.value is None:
            continue
        axes.scatter([trial.number], [trial.value], s=120, facecolor="none", edgecolor=DARK)
        # Away from the sides, which would cut the name.
        share = (trial.number - min(numbers)) / max(max(numbers) - min(numbers), 1)
        side = "left" if share < 0.15 else "right" if share > 0.85 else "center"
        axes.annotate(name, (trial.number, trial.value), xytext=(0, above), fontsize=8, color=DARK,
                      textcoords="offset points", ha=side)  # fmt: skip

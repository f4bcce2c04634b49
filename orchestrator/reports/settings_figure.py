"""The picture of what the score of trials did with each setting."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from orchestrator.reports.canvas import (
    BLUE,
    DARK,
    GREY,
    ORANGE,
    log_if_wide,
    logarithmic,
    new_figure,
    plain,
    png,
    score_label,
    tidy,
    wrapped,
)
from orchestrator.reports.search import SearchRecord, TrialRow
from orchestrator.reports.search_facts import (
    Snapshot,
    is_number,
    searched_settings,
    setting_values,
    short_name,
    snapshot,
)
from orchestrator.reports.tables import format_setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4
_GOLDEN = 0.618034
"""Multiples of it modulo 1 spread evenly, however many there are: jitter without chance."""


def draw_settings(r: SearchRecord) -> bytes:
    """Score against each searched setting, after as many epochs as enough trials reached."""
    paths, found = searched_settings(r), snapshot(r)
    columns = min(_COLUMNS, len(paths))
    rows = math.ceil(len(paths) / columns)
    n = len(found.scores)
    title = f"{r.name}: score at epoch {found.epoch} ({n} trial{'' if n == 1 else 's'})"
    figure = new_figure(max(6.5, 2.7 * columns), 1.2 + 2.2 * rows, title)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, path in zip(grid.flat, paths, strict=False):
        _draw_setting(axes, r, path, found)
        axes.set_xlabel(plain(short_name(path, paths)))
        axes.margins(x=0.1, y=0.12)
        tidy(axes)
    for axes in list(grid.flat)[len(paths) :]:
        axes.set_visible(False)
    figure.supylabel(score_label(r.metric, r.higher_is_better), fontsize=9, color=DARK)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=4, fontsize=8,
                  frameon=False)  # fmt: skip
    return png(figure)


def _draw_setting(axes: Axes, r: SearchRecord, path: str, found: Snapshot) -> None:
    pairs = setting_values(r, path, found)
    if not pairs:
        axes.text(0.5, 0.5, "in none of\nthese trials", transform=axes.transAxes, fontsize=8,
                  color=GREY, ha="center", va="center")  # fmt: skip
        axes.set_xticks([])
        return
    values = [trial.settings[path] for trial in r.trials if path in trial.settings]
    if all(is_number(value) for value in values):
        axes.locator_params(axis="x", nbins=4)
        kind = r.domains.get(path)
        if kind == "loguniform":
            logarithmic(axes.xaxis)
        elif kind in (None, "choice", "grid"):
            log_if_wide(axes.xaxis, values)
        positions = [value for value, _ in pairs]
    else:
        positions = _place_names(axes, [format_setting(value) for value, _ in pairs])
    for x, (_, trial) in zip(positions, pairs, strict=True):
        marker, size, fill, edge, label = _style(r, trial)
        axes.scatter([x], [found.scores[trial.number]], marker=marker, s=size, facecolor=fill,
                     edgecolor=edge, label=label, zorder=3 + (size > 30))  # fmt: skip


def _place_names(axes: Axes, names: list[str]) -> list[float]:
    """One place on the x axis for each different name, with the points of a name spread."""
    different = sorted(set(names))
    positions = []
    for index, name in enumerate(names):
        earlier = names[:index].count(name)
        positions.append(different.index(name) + 0.4 * ((earlier + 1) * _GOLDEN % 1 - 0.5))
    axes.set_xticks(range(len(different)), [plain(wrapped(name, 16, 1)) for name in different])
    if len(different) > 3 or max(map(len, different)) > 12:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    return positions


def _style(r: SearchRecord, trial: TrialRow) -> tuple[str, int, str, str, str]:
    """Marker, size, inside, edge and name in the legend."""
    finished = trial.state == "finished"
    if trial.number == r.winner:
        if trial.number == r.first:
            return "*", 110, ORANGE, ORANGE, "winner: the default point"
        return "*", 110, BLUE, BLUE, "winner"
    if trial.number == r.first:
        name = "default point" if finished else "default point (not finished)"
        return "o", 60, ORANGE if finished else "white", ORANGE, name
    if finished:
        return "o", 22, BLUE, BLUE, "finished"
    return "o", 22, "white", BLUE, "not finished"

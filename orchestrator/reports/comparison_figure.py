"""The picture of a comparison: every seed, and the paired differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.reports.canvas import (
    BLUE,
    DARK,
    GREY,
    LIGHT,
    ORANGE,
    new_figure,
    plain,
    png,
    tidy,
    wrapped,
)
from orchestrator.reports.comparison import Comparison, paired_to_reference, reference_arm
from orchestrator.reports.paired import Paired
from orchestrator.reports.tables import deviation, difference_unit, format_difference, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_comparison(c: Comparison) -> bytes:
    """Scores of all seeds by arm, and differences to the reference with intervals, as PNG."""
    rows = len(c.arms)
    better = "higher" if c.higher_is_better else "lower"
    figure = new_figure(10.5, 1.9 + 0.5 * rows, c.name)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.0, 0.9])
    unit = f", {c.unit}" if c.unit else ""
    _draw_scores(left, c)
    left.set_xlabel(plain(f"{c.metric}{unit} ({better} is better)"))
    left.set_yticks(range(rows), [plain(wrapped(arm.name, 30)) for arm in c.arms])
    left.set_ylim(rows - 0.4, -0.6)
    left.set_title("each seed, mean and standard deviation", loc="left", fontsize=9, color=DARK)
    _draw_differences(right, c)
    points = difference_unit(c.unit)
    right.set_xlabel(plain(f"difference to {wrapped(c.reference, 30, 1)}{points and f',{points}'}"))
    right.set_title(
        "same seed, minus reference: mean and 95 % interval", loc="left", fontsize=9, color=DARK
    )
    for axes in (left, right):
        tidy(axes, grid="x")
        axes.margins(x=0.08)
    right.tick_params(labelleft=False)
    return png(figure)


def _draw_scores(axes: Axes, c: Comparison) -> None:
    for seed in c.seeds:
        points = [(arm.finished.get(seed, float("nan")), row) for row, arm in enumerate(c.arms)]
        axes.plot(*zip(*points, strict=True), color=LIGHT, linewidth=0.6, zorder=1)
    for row, arm in enumerate(c.arms):
        scores = list(arm.finished.values())
        if not scores:
            axes.text(
                0.5, row, "no seed finished", transform=axes.get_yaxis_transform(), fontsize=8,
                color=GREY, ha="center", va="center",
            )  # fmt: skip
            continue
        color = DARK if arm.name == c.reference else BLUE
        axes.scatter(scores, [row] * len(scores), s=22, color=color, alpha=0.55, linewidth=0)
        center, spread = mean(scores), deviation(scores)
        if center is not None and spread is not None:
            axes.plot([center, center], [row - 0.24, row + 0.24], color=color, linewidth=2.2)
            axes.plot([center - spread, center + spread], [row + 0.24] * 2, color=color, lw=1.2)


def _draw_differences(axes: Axes, c: Comparison) -> None:
    from matplotlib.ticker import MaxNLocator

    pairs, reference = paired_to_reference(c), reference_arm(c).finished
    axes.axvline(0, color=DARK, linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for row, arm in enumerate(c.arms):
        pair = pairs.get(arm.name)
        color, label = _judge(pair, c)
        if arm.name == c.reference:
            color, label = DARK, "reference"
        axes.text(
            1.02, row, label, transform=axes.get_yaxis_transform(), fontsize=8, color=color,
            va="center",
        )  # fmt: skip
        if pair is None:
            continue
        differences = [v - reference[s] for s, v in arm.finished.items() if s in reference]
        axes.scatter(
            differences, [row + 0.22] * len(differences), s=12, color=color, alpha=0.45, linewidth=0
        )
        axes.scatter([pair.mean], [row], s=34, color=color, zorder=3)
        if pair.low is not None and pair.high is not None:
            axes.plot([pair.low, pair.high], [row, row], color=color, linewidth=2)


def _judge(pair: Paired | None, c: Comparison) -> tuple[str, str]:
    """Colour and words for a difference."""
    if pair is None:
        return GREY, "no common seed"
    change = format_difference(pair.mean, c.unit)
    if pair.low is None or pair.high is None:
        return GREY, f"{change}\nno interval, n = {pair.n}"
    if pair.low <= 0 <= pair.high:
        return GREY, f"{change}, n = {pair.n}\nno difference shown"
    if (pair.mean > 0) == c.higher_is_better:
        return BLUE, f"{change}, n = {pair.n}\nbetter"
    return ORANGE, f"{change}, n = {pair.n}\nworse"

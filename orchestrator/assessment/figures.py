"""The pictures of an evaluation: which classes are confused, and what confidence is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.assessment.evaluation import Evaluation
from orchestrator.assessment.metrics import Calibration
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WITH_NUMBERS = 20
"""Up to so many classes, cells hold their number of images."""
_WITH_NAMES = 60
"""Up to so many, rows and columns have names."""
_PAIRS = 20
"""Confusions listed beside a matrix without numbers."""
_NAME_WIDTH = 18


def draw_confusion(e: Evaluation) -> bytes:
    """The confusion matrix as PNG: share of each true class, with the commonest confusions."""
    confusion = e.model.quality.confusion.numpy()  # (K, K)
    num_classes = len(e.class_names)
    title = (
        f"{e.model.name}: predictions on the {e.split} split, top-1 {e.model.quality.top1:.2f} %"
    )
    if num_classes <= _WITH_NUMBERS:
        side = 3.5 + 0.36 * num_classes
        figure = new_figure(side, side, title)
        axes = figure.subplots()
        _draw_matrix(axes, confusion)
        _write_numbers(axes, confusion)
    else:
        figure = new_figure(13, 10, title)
        axes, beside = figure.subplots(1, 2, width_ratios=[1.0, 0.36])
        _draw_matrix(axes, confusion)
        _list_confusions(beside, confusion, e.class_names)
    if num_classes <= _WITH_NAMES:
        names = [plain(wrapped(name, _NAME_WIDTH, 1)) for name in e.class_names]
        size = 8 if num_classes <= _WITH_NUMBERS else 6
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=size)
        axes.set_yticks(range(num_classes), names, fontsize=size)
    return png(figure)


def draw_reliability(e: Evaluation) -> bytes:
    """Accuracy by confidence as PNG, with the number of images below."""
    judged = [j for j in (e.model, e.teacher) if j is not None]
    errors = ", ".join(f"{j.name} {j.quality.calibration.ece:.2f} %" for j in judged)
    figure = new_figure(6.5, 6.0, f"Accuracy by confidence. Expected calibration error: {errors}")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, 0.35])
    upper.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    for judged_one, color in zip(judged, (BLUE, ORANGE), strict=False):
        calibration = judged_one.quality.calibration
        present = calibration.counts.numpy() > 0
        upper.plot(
            100 * calibration.confidences.numpy()[present],
            100 * calibration.accuracies.numpy()[present],
            color=color,
            marker="o",
            markersize=4,
            linewidth=1.4,
            label=plain(judged_one.name),
        )
    _draw_gaps(upper, e.model.quality.calibration)
    num_bins = len(e.model.quality.calibration.counts)
    edges = np.linspace(0, 100, num_bins + 1)
    lower.stairs(e.model.quality.calibration.counts.numpy(), edges, fill=True, color=BLUE)
    if e.teacher is not None:
        lower.stairs(e.teacher.quality.calibration.counts.numpy(), edges, color=ORANGE)
    upper.set_ylabel("accuracy, %")
    upper.set_ylim(0, 102)
    lower.set_ylabel("images")
    lower.set_xlabel("probability of the predicted class, %")
    lower.set_xlim(0, 100)
    upper.legend(loc="upper left", fontsize=8, frameon=False)
    for axes in (upper, lower):
        tidy(axes)
    return png(figure)


def _draw_gaps(axes: Axes, calibration: Calibration) -> None:
    """How far each point of the model lies from what it claims."""
    for count, confidence, accuracy in zip(
        calibration.counts.tolist(),
        (100 * calibration.confidences).tolist(),
        (100 * calibration.accuracies).tolist(),
        strict=True,
    ):
        if count:
            axes.plot([confidence] * 2, [confidence, accuracy], color=LIGHT, linewidth=3, zorder=1)


def _draw_matrix(axes: Axes, confusion: NDArray[np.int64]) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    white_to_blue = LinearSegmentedColormap.from_list("share", ["white", BLUE])
    # The root makes single mistakes visible beside a diagonal near 100 %.
    image = axes.imshow(_shares(confusion), cmap=white_to_blue, norm=PowerNorm(0.5, 0, 100))
    axes.figure.colorbar(
        image, ax=axes, shrink=0.6, ticks=[0, 1, 5, 20, 50, 100], label="% of the true class"
    )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    tidy(axes)
    axes.grid(visible=False)


def _write_numbers(axes: Axes, confusion: NDArray[np.int64]) -> None:
    shares = _shares(confusion)
    for row, column in zip(*np.nonzero(confusion), strict=True):
        axes.text(
            column,
            row,
            str(confusion[row, column]),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if shares[row, column] > 40 else DARK,
        )


def _list_confusions(
    axes: Axes, confusion: NDArray[np.int64], class_names: tuple[str, ...]
) -> None:
    """The largest numbers off the diagonal, as text."""
    mistakes = confusion.copy()
    np.fill_diagonal(mistakes, 0)
    largest = np.argsort(-mistakes, axis=None, kind="stable")[:_PAIRS]
    lines = ["Most frequent confusions", "(true > predicted: images)", ""]
    for row, column in zip(*np.unravel_index(largest, mistakes.shape), strict=True):
        if mistakes[row, column]:
            pair = f"{class_names[row]} > {class_names[column]}"
            lines.append(f"{wrapped(pair, 2 * _NAME_WIDTH, 1)}: {mistakes[row, column]}")
    axes.text(0, 1, plain("\n".join(lines)), va="top", fontsize=8, color=DARK, linespacing=1.5)
    axes.set_axis_off()


def _shares(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Percent of each row; 0 where a class has no images."""
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shares: NDArray[np.float64] = 100 * confusion / totals
    return shares

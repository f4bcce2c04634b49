"""What all figures have in common: colours, marks, and how they become PNG bytes.

matplotlib's objects are used directly, without pyplot's global state, and it is imported only where
something is drawn.
"""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.reports.tables import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any kind of colour vision.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
YELLOW = "#E69F00"
GREY = "#8C8C8C"
LIGHT = "#BDBDBD"
DARK = "#333333"

_DPI = 150


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of so many inches, with its title at the left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    figure.suptitle(
        plain(wrapped(title, int(width * 10.5))),
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
        color=DARK,
    )
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def scatter(axes: Axes, points: Sequence[tuple[float, float]], **style: Any) -> None:
    """Marks at these points."""
    axes.scatter([x for x, _ in points], [y for _, y in points], **style)


def tidy(axes: Axes, *, grid: str = "y") -> None:
    """Remove what is not data: frame and ticks; keep a faint grid along one or both directions."""
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=8, labelcolor=DARK)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(9)
        label.set_color(DARK)


def plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def wrapped(text: str, width: int, lines: int = 3) -> str:
    """A text over several lines; what does not fit is cut."""
    return "\n".join(
        textwrap.wrap(text, width, max_lines=lines, placeholder="...", break_on_hyphens=False)
    )


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only, for trials and epochs."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def log_if_wide(axis: Axis, values: Sequence[float]) -> None:
    """Make an axis logarithmic when its values are positive and span more than a decade."""
    if min(values) > 0 and max(values) > 10 * min(values):
        logarithmic(axis)


def logarithmic(axis: Axis) -> None:
    """Make an axis logarithmic, with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
    # At 3 as well as at 1, so that a little more than a decade has two labels or more.
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short_number(value)))


def apart(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved as little as needed for labels not to overlap, in the same order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved = list(positions)
    for _ in range(50):
        for below, above in itertools.pairwise(order):
            overlap = gap - (moved[above] - moved[below])
            if overlap > 0:
                moved[below] -= overlap / 2
                moved[above] += overlap / 2
    return moved


def score_label(metric: str, higher_is_better: bool) -> str:
    """Label of an axis for scores."""
    unit = unit_of(metric)
    better = "higher" if higher_is_better else "lower"
    return plain(f"{metric}{unit and f', {unit}'} ({better} is better)")


def _short_number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"

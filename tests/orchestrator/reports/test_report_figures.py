"""Figures are PNG files of a sensible size, drawn without a warning from whatever there is."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest
from PIL import Image
from report_examples import (
    arm,
    comparison,
    noisy_comparison,
    population_search,
    realistic_search,
    search,
    student_search,
    trial,
)

from orchestrator.reports.canvas import apart, wrapped
from orchestrator.reports.comparison import Comparison
from orchestrator.reports.comparison_figure import draw_comparison
from orchestrator.reports.figures import search_figures
from orchestrator.reports.search import SearchRecord


def check_png(content: bytes) -> None:
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert image.format == "PNG"
        assert 600 < image.width < 2600
        assert 300 < image.height < 2600
        colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
        assert colors is not None and len(colors) > 20  # something is drawn


LONG = "consistency weight = 1 and a name that goes on for very much longer than is $wise$ here"


@pytest.mark.parametrize(
    "c",
    [
        noisy_comparison(["ce", "dcd"], 1),
        noisy_comparison(["ce", "kd", "dcd", "dcd+kd"], 5),
        noisy_comparison([f"{n} {LONG}" for n in range(10)], 20),
        comparison(arm("ce", []), arm("dcd", [math.nan])),
        comparison(arm("ce", [80.0, 80.0]), arm("dcd", [80.0, 80.0]), arm("kd", [])),
    ],
    ids=["one seed", "five", "ten long names", "nothing finished", "all equal"],
)
def test_a_comparison_is_drawn(c: Comparison) -> None:
    check_png(draw_comparison(c))


@pytest.mark.parametrize(
    ("r", "names"),
    [
        (realistic_search(), ["history", "curves", "settings"]),
        (student_search(), ["history", "curves", "settings", "pareto"]),
        (population_search(), ["history", "curves", "schedule"]),
        (search(trial(0, 90.0)), ["history", "curves"]),
        (search(trial(0, 90.0), trial(1, 90.0)), ["history", "curves", "settings"]),
        (search(trial(0, None, state="failed"), trial(1, math.nan, state="failed")), []),
        (search(), []),
        (
            search(
                *(
                    trial(n, 90.0 + n, settings={"a.flag": n > 1, f"b.{LONG}": LONG[n:], "c.x": n})
                    for n in range(5)
                )
            ),
            ["history", "curves", "settings"],
        ),
    ],
    ids=["ASHA", "students", "PBT", "one trial", "equal", "failed", "none", "odd settings"],
)
def test_the_figures_that_apply_to_a_search_are_drawn(r: SearchRecord, names: list[str]) -> None:
    figures = search_figures(r)
    assert list(figures) == names
    for content in figures.values():
        check_png(content)


def test_two_goals_of_which_no_trial_has_the_second_are_drawn() -> None:
    goals = [("val/top1", "max"), ("student/parameters", "min")]
    check_png(search_figures(search(trial(0, 90.0), trial(1, 91.0), goals=goals))["pareto"])


def test_the_same_values_give_the_same_picture() -> None:
    assert search_figures(realistic_search()) == search_figures(realistic_search())


def test_reports_load_matplotlib_only_to_draw() -> None:
    code = (
        "import sys, orchestrator.reports.figures, orchestrator.reports.comparison_figure;"
        "assert 'matplotlib' not in sys.modules;"
        "import matplotlib.figure; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_labels_are_moved_apart_as_little_as_needed() -> None:
    assert apart([5.0, 1.0], 2.0) == [5.0, 1.0]
    assert apart([1.0, 1.5], 1.0) == pytest.approx([0.75, 1.75])
    assert apart([], 1.0) == []


def test_a_text_that_does_not_fit_is_cut() -> None:
    assert wrapped("one two three four", 9, 2) == "one two\nthree..."

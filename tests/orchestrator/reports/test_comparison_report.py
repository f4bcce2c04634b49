"""Comparisons as text and Markdown."""

from __future__ import annotations

import math

import pytest
from report_examples import arm, comparison

from orchestrator.comparison.report import mean_scores
from orchestrator.errors import UserError
from orchestrator.reports.comparison import (
    comparison_markdown,
    describe_comparison,
    paired_to_reference,
)

CE = [80.0, 81.0, 82.0, 83.0, 84.0]
DCD = [81.0, 83.0, 85.0, 87.0, 89.0]
"""1, 2, 3, 4 and 5 more."""


def row(text: str, name: str) -> list[str]:
    """Cells of the first table line that starts with a name."""
    return next(line for line in text.splitlines() if line.startswith(name)).split()


def test_the_table_holds_what_a_hand_calculation_gives() -> None:
    text = describe_comparison(comparison(arm("ce", CE), arm("dcd", DCD)))
    assert text.startswith("methods: test/top1 in % with seeds 0, 1, 2, 3, 4; higher is better")
    # sd of 0..4 is sqrt(10 / 4) = 1.58; of 0, 2, 4, 6, 8 twice that
    assert row(text, "ce") == [
        "ce",
        "(reference)",
        "5",
        "82.00",
        "1.58",
        "84.00",
        "80.00",
        "-",
        "-",
        "-",
    ]
    assert row(text, "dcd ") == [
        "dcd",
        "5",
        "85.00",
        "3.16",
        "89.00",
        "81.00",
        "+3.00",
        "+1.04",
        "to",
        "+4.96",
        "0.013",
    ]
    assert "dcd: better than ce by 3.0 points (95 % paired t interval 1.0 to 5.0, n = 5)" in text
    assert "Holm" not in text


def test_several_arms_have_adjusted_p_values_and_say_so() -> None:
    worse = [score - 2 * (score - ce) for score, ce in zip(DCD, CE, strict=True)]
    text = describe_comparison(comparison(arm("ce", CE), arm("dcd", DCD), arm("kd", worse)))
    # Both have p = 0.0132: the smaller x 2, the other no less.
    assert row(text, "dcd ")[-1] == "0.026"
    assert row(text, "kd ")[-1] == "0.026"
    assert "kd: worse than ce by 3.0 points" in text
    assert "p (Holm)" in text
    assert "not corrected for several" in text.replace("\n", " ")


def test_a_low_loss_is_the_best() -> None:
    c = comparison(
        arm("ce", [0.5, 0.75]), arm("kd", [0.25, 0.375]), unit="", higher_is_better=False,
        metric="val/loss", seeds=[0, 1],
    )  # fmt: skip
    text = describe_comparison(c)
    assert text.startswith("methods: val/loss with seeds 0, 1; lower is better")
    assert row(text, "ce")[5:7] == ["0.5", "0.75"]
    assert "points" not in text


def test_only_seeds_that_both_finished_are_paired_and_the_missing_are_named() -> None:
    c = comparison(
        arm("ce", CE, failures={}),
        arm("dcd", DCD[:3], failures={4: "Diverged:\n  loss is nan"}),
    )
    pair = paired_to_reference(c)["dcd"]
    assert pair is not None
    assert (pair.n, pair.mean) == (3, 2.0)
    text = describe_comparison(c)
    assert "n = 3" in text
    assert "; without seeds 3, 4, which not both have finished" in text
    assert "dcd, seed 4 failed: Diverged: loss is nan" in text


def test_a_score_that_is_nan_is_a_failure() -> None:
    text = describe_comparison(comparison(arm("ce", CE), arm("dcd", [*DCD[:4], math.nan])))
    assert "dcd, seed 4 failed: its score is nan" in text
    assert row(text, "dcd ")[1:3] == ["4", "84.00"]


def test_arms_without_a_finished_seed_are_told() -> None:
    text = describe_comparison(comparison(arm("ce", []), arm("dcd", DCD), arm("kd", [])))
    assert row(text, "kd ")[1:] == ["0", *"-------"]
    assert "dcd: no seed was finished both by it and by ce" in text


def test_one_seed_is_called_one_seed() -> None:
    text = describe_comparison(comparison(arm("ce", [80.0]), arm("dcd", [81.0]), seeds=[7]))
    assert "with seed 7;" in text
    assert "one seed says nothing about the spread" in text


def test_a_reference_that_is_no_arm_is_refused() -> None:
    with pytest.raises(UserError, match="reference 'kd' is none of the arms: ce, dcd"):
        describe_comparison(comparison(arm("ce", CE), arm("dcd", DCD), reference="kd"))


def test_arms_whose_names_mlflow_cannot_tell_apart_have_metrics_of_their_own() -> None:
    c = comparison(arm("a+b", [80.0]), arm("a b", [81.0]), reference="a b", seeds=[0])
    assert mean_scores(c) == {"mean/test/top1/a b": 80.0, "mean/test/top1/a b 2": 81.0}


def test_the_page_has_table_figure_settings_and_facts() -> None:
    c = comparison(arm("ce", CE), arm("a|b", DCD, val_scores={0: 90.0, 1: 91.0}, failures={9: "x"}))
    page = comparison_markdown(c, "figures/c.png")
    assert page.startswith("# methods\n\n")
    assert "](figures/c.png)" in page
    assert "| a\\|b | 5 | 85.00 | 3.16 | 89.00 | 81.00 | 90.50 | +3.00 |" in page
    assert "| ce | objective.method = ce |" in page
    assert "| data | digits, 5 labels per class |" in page
    assert "- a|b, seed 9 failed: x" in page
    assert "## How to read it" in page
    assert "![" not in comparison_markdown(c, None)

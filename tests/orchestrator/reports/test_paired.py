"""Paired differences, their interval and what is said of them."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from orchestrator.reports.paired import (
    holm,
    paired_difference,
    pareto_front,
    spearman,
    verdict,
)

T_975_4 = 2.7764451051977987
"""0.975 quantile of Student's t with 4 degrees of freedom, from a table."""


def test_the_interval_of_differences_1_to_5_is_the_hand_calculation() -> None:
    # mean 3, sum of squares 4+1+0+1+4 = 10, sd sqrt(10/4), standard error sqrt(10/4/5) = sqrt(0.5)
    paired = paired_difference([11, 22, 33, 44, 55], [10, 20, 30, 40, 50])
    assert (paired.n, paired.mean) == (5, 3.0)
    assert paired.sd == pytest.approx(math.sqrt(2.5))
    assert paired.low == pytest.approx(3 - T_975_4 * math.sqrt(0.5), abs=1e-9)
    assert paired.high == pytest.approx(3 + T_975_4 * math.sqrt(0.5), abs=1e-9)
    # With 4 degrees of freedom the tail has a closed form in x = t / sqrt(t^2 + 4).
    t = 3 / math.sqrt(0.5)
    x = t / math.sqrt(t**2 + 4)
    assert paired.p == pytest.approx(1 - 1.5 * (x - x**3 / 3), rel=1e-9)


def test_a_wider_confidence_is_used() -> None:
    # 0.995 quantile with 1 degree of freedom (Cauchy): tan(0.495 pi)
    paired = paired_difference([1, 3], [0, 0], confidence=0.99)
    assert paired.high == pytest.approx(2 + math.tan(0.495 * math.pi) * 1.0)
    assert "99 % paired t interval" in verdict(paired, "a", "b", higher_is_better=True)


def test_half_a_standard_deviation_takes_34_seeds() -> None:
    # The textbook number for a two-sided paired t test at 5 % with 80 % power and d = 0.5.
    differences = [0.5 + sign for sign in (1, -1) * 10]
    scale = math.sqrt(20 / 19)  # their standard deviation
    paired = paired_difference([scale * 0.5 + d - 0.5 for d in differences], [0.0] * 20)
    assert paired.mean / paired.sd == pytest.approx(0.5)
    assert paired.seeds_needed == 34


def test_the_number_of_seeds_gives_80_percent_power_in_a_simulation() -> None:
    paired = paired_difference([0.0, 1.0, 2.0, 3.0], [0.5] * 4)  # mean 1, sd 1.29
    n = paired.seeds_needed
    assert n is not None
    draw = random.Random(0)
    found = 0
    for _ in range(2000):
        again = paired_difference([draw.gauss(1.0, paired.sd) for _ in range(n)], [0.0] * n)
        found += again.low > 0 or again.high < 0
    assert 0.77 < found / 2000 < 0.88  # n is whole, so the power is somewhat above 0.8


def test_extreme_effects_have_a_number_of_seeds() -> None:
    assert paired_difference([1, -1], [0, 0]).seeds_needed is None
    assert paired_difference([1e6, 1e6 + 1], [0, 0]).seeds_needed == 2
    # Many: the normal formula ((1.959964 + 0.841621) sd / mean)^2, here with sd 1, mean 1e-3 / 3
    tiny = paired_difference([1, -1, 1e-3], [0, 0, 0])
    assert tiny.seeds_needed == pytest.approx((2.801585 * 3e3) ** 2, rel=1e-5)


def test_a_large_effect_on_few_seeds_is_not_taken_for_enough() -> None:
    """Where one side of the noncentral t is too small to be computed."""
    paired = paired_difference([0.9, 1.08], [0, 0])
    assert paired.low is not None and paired.low < 0
    assert paired.seeds_needed == 3
    generator = np.random.default_rng(0)
    effect = paired.mean / paired.sd if paired.sd else 0.0
    for n, enough in ((2, False), (3, True)):
        draws = generator.normal(effect, 1.0, (4000, n))
        shown = [stats.ttest_1samp(row, 0).pvalue < 0.05 for row in draws]
        assert (np.mean(shown) > 0.8) == enough


def test_an_interval_next_to_zero_does_not_read_as_zero() -> None:
    paired = paired_difference([10.0, 30.0, 19.0], [0.0] * 3)._replace(low=0.03, high=39.3)
    text = verdict(paired, "a", "b", higher_is_better=True)
    assert text.startswith("a: better than b by 19.67 points (95 % paired t interval 0.03 to 39.30")


def test_a_difference_of_rounding_alone_is_none() -> None:
    paired = paired_difference([0.1 + 0.2, 0.3], [0.3, 0.3])
    assert verdict(paired, "a", "b", higher_is_better=True) == "a: equal to b in each of 2 seeds"


def test_better_and_worse_are_said_with_interval_and_number() -> None:
    up = paired_difference([1, 2, 3, 4, 5], [0] * 5)
    down = paired_difference([0] * 5, [1, 2, 3, 4, 5])
    numbers = "by 3.0 points (95 % paired t interval 1.0 to 5.0, n = 5)"
    assert verdict(up, "dcd", "ce", higher_is_better=True) == f"dcd: better than ce {numbers}"
    assert verdict(down, "dcd", "ce", higher_is_better=True) == f"dcd: worse than ce {numbers}"
    assert verdict(down, "dcd", "ce", higher_is_better=False) == f"dcd: better than ce {numbers}"


def test_no_difference_shown_says_how_many_seeds_would_show_it() -> None:
    # mean 1, sd sqrt(10); half width 2.776 sqrt(2) = 3.93
    paired = paired_difference([-3, -1, 1, 3, 5], [0] * 5)
    assert verdict(paired, "kd", "ce", higher_is_better=True) == (
        "kd: no difference to ce shown with n = 5 (mean +1.0 points, 95 % paired t interval "
        f"-2.9 to 4.9): would need about {paired.seeds_needed} seeds"
    )


def test_small_losses_keep_two_digits_of_the_interval_and_no_points() -> None:
    paired = paired_difference([0.001, 0.002, 0.003, 0.004, 0.005], [0] * 5)
    assert verdict(paired, "a", "b", higher_is_better=False, unit="") == (
        "a: worse than b by 0.0030 (95 % paired t interval 0.0010 to 0.0050, n = 5)"
    )


def test_too_many_seeds_are_not_counted() -> None:
    paired = paired_difference([1, -1, 1e-3], [0] * 3)
    assert "would need more than 10,000 seeds" in verdict(paired, "a", "b", higher_is_better=True)


def test_a_mean_difference_of_zero_asks_for_no_seeds() -> None:
    text = verdict(paired_difference([1, -1], [0, 0]), "a", "b", higher_is_better=True)
    assert text.startswith("a: no difference to b shown with n = 2")
    assert "would need" not in text


def test_one_seed_says_nothing_about_the_spread() -> None:
    paired = paired_difference([91.5], [90.0])
    assert paired[:7] == (1, 1.5, None, None, None, None, None)
    assert verdict(paired, "dcd", "ce", higher_is_better=True) == (
        "dcd: +1.50 points to ce with n = 1: one seed says nothing about the spread"
    )


def test_equal_differences_have_no_interval() -> None:
    same = paired_difference([90.1, 80.1, 70.1], [90.0, 80.0, 70.0])  # equal but for rounding
    assert (same.low, same.high, same.sd, same.p, same.seeds_needed) == (None, None, 0, None, 2)
    assert verdict(same, "a", "b", higher_is_better=True) == (
        "a: better than b by the same 0.1 points in each of 3 seeds: no spread was seen, so there "
        "is no interval"
    )
    nothing = paired_difference([90.0, 80.0], [90.0, 80.0])
    assert nothing.seeds_needed is None
    assert verdict(nothing, "a", "b", higher_is_better=True) == "a: equal to b in each of 2 seeds"


@pytest.mark.parametrize(
    ("values", "reference", "message"),
    [
        ([1.0], [1.0, 2.0], "needs pairs"),
        ([], [], "needs pairs"),
        ([1.0, math.nan], [1.0, 2.0], "finite"),
        ([1.0, 2.0], [math.inf, 2.0], "finite"),
    ],
)
def test_what_is_no_pairs_of_numbers_is_refused(
    values: list[float], reference: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(values, reference)


def test_holm_is_the_hand_calculation() -> None:
    # sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # 0.02 x 2 = 0.04, then 0.03 x 1 = 0.03, which must not fall below 0.04; None is no test
    assert holm([0.03, None, 0.02]) == [0.04, None, 0.04]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_spearman_is_the_hand_calculation() -> None:
    # rank differences 1, 1, 0, 0: 1 - 6 * 2 / (4 * 15)
    assert spearman([1, 2, 3, 4], [20, 10, 300, 4000]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("a", "b"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5]), ([], [])]
)
def test_spearman_of_too_little_is_none(a: list[float], b: list[float]) -> None:
    assert spearman(a, b) is None


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(90, 5), (80, 1), (85, 5), (90, 5), (70, 2), (80, 1.5)]
    assert pareto_front(points, ["max", "min"]) == [0, 1, 3]
    assert pareto_front(points, ["max", "max"]) == [0, 3]
    assert pareto_front([], ["max", "min"]) == []
    assert pareto_front([(1, 2)], ["min", "min"]) == [0]

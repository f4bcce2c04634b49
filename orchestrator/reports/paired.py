"""What pairs of runs that share a seed say about the difference between two settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from orchestrator.reports.tables import difference_unit

_POWER = 0.8
"""Chance that the proposed number of seeds shows the difference, if it is as large as observed."""
_MANY_SEEDS = 10_000
"""Beyond this the normal distribution stands in for Student's t, and text says `more than`."""


class Paired(NamedTuple):
    """Differences of one arm to another over the seeds that both have."""

    n: int
    mean: float
    low: float | None
    """Of Student's t interval. None with one seed, and where all differences are equal: without
    any spread the interval would have no width, which claims more than n seeds can know."""
    high: float | None
    sd: float | None
    """Standard deviation of the differences; None with one seed."""
    p: float | None
    """Of the two-sided paired t test; None where there is no interval."""
    seeds_needed: int | None
    """Seeds with which the interval leaves out 0 with 80 % probability, if the true difference
    and spread are the observed ones. None with one seed, and where the mean difference is 0."""
    confidence: float


def paired_difference(
    values: Sequence[float], reference: Sequence[float], *, confidence: float = 0.95
) -> Paired:
    """Mean of ``values - reference`` with its paired Student t interval.

    Args:
        values: scores of an arm, one a seed.
        reference: scores of the other arm for the same seeds, in the same order.
        confidence: of the interval, between 0 and 1.

    Raises:
        ValueError: the two are not of one length, are empty, or hold a NaN or an infinity.
    """
    if len(values) != len(reference) or not values:
        raise ValueError(f"needs pairs, found {len(values)} values and {len(reference)} references")
    both = np.array([values, reference], dtype=np.float64)
    if not np.isfinite(both).all():
        raise ValueError("needs finite values: leave out the seeds that have none")
    differences = both[0] - both[1]
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Paired(n, mean, None, None, None, None, None, confidence)
    sd = float(differences.std(ddof=1))
    rounding = 1e-12 * np.abs(both).max()  # of the subtraction
    if sd <= rounding:
        equal = abs(mean) <= rounding
        needed = None if equal else 2
        return Paired(n, 0.0 if equal else mean, None, None, 0.0, None, needed, confidence)
    error = sd / math.sqrt(n)
    half_width = _t_quantile(n, confidence) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    needed = _seeds_needed(abs(mean) / sd, confidence)
    return Paired(n, mean, mean - half_width, mean + half_width, sd, p, needed, confidence)


def verdict(
    paired: Paired,
    name: str,
    reference_name: str,
    *,
    higher_is_better: bool,
    unit: str = "%",
) -> str:
    """One sentence: better, worse, or not shown, with the interval it rests on.

    Args:
        paired: the differences.
        name: of the arm.
        reference_name: of the arm that it is compared to.
        higher_is_better: whether a large score is good.
        unit: of the scores; differences of percentages are called points.
    """
    points = difference_unit(unit)
    if paired.n == 1:
        return (
            f"{name}: {_decimal(paired.mean, 2, sign=True)}{points} to {reference_name} with "
            "n = 1: one seed says nothing about the spread"
        )
    word = "better" if (paired.mean > 0) == higher_is_better else "worse"
    if paired.low is None or paired.high is None:
        if paired.mean == 0:
            return f"{name}: equal to {reference_name} in each of {paired.n} seeds"
        return (
            f"{name}: {word} than {reference_name} by the same {abs(paired.mean):.4g}{points} in "
            f"each of {paired.n} seeds: no spread was seen, so there is no interval"
        )
    # As many decimals as show half the interval's width with two digits, but at least one.
    digits = max(1, 1 - math.floor(math.log10((paired.high - paired.low) / 2)))
    low, high = paired.low, paired.high
    if low > 0 or high < 0:
        # And so many that the end next to 0 does not read as 0.
        digits = max(digits, -math.floor(math.log10(min(abs(low), abs(high)))))
        if paired.mean < 0:  # so that "by" is followed by its own interval, not by the mirrored one
            low, high = -high, -low
        return (
            f"{name}: {word} than {reference_name} by {abs(paired.mean):.{digits}f}{points} "
            f"({_interval(low, high, digits, paired.confidence)}, n = {paired.n})"
        )
    return (
        f"{name}: no difference to {reference_name} shown with n = {paired.n} (mean "
        f"{_decimal(paired.mean, digits, sign=True)}{points}, "
        f"{_interval(low, high, digits, paired.confidence)}){_needed_text(paired.seeds_needed)}"
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjustment of p-values for their number; None is no test and stays None.

    The k-th smallest of m is multiplied by m - k + 1, limited to 1, and never falls below the
    adjusted value before it.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation; None with fewer than three pairs, or where one side is constant."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(stats.spearmanr(a, b).statistic)


def pareto_front(points: Sequence[Sequence[float]], modes: Sequence[str]) -> list[int]:
    """Indices of the points that no other point beats, in their order; equal points all stay.

    Args:
        points: values of the goals, one row a point.
        modes: ``max`` or ``min`` for each goal.
    """
    signs = [1 if mode == "max" else -1 for mode in modes]
    gains = [[sign * value for sign, value in zip(signs, p, strict=True)] for p in points]
    return [
        index
        for index, gain in enumerate(gains)
        if not any(
            other != gain and all(x >= y for x, y in zip(other, gain, strict=True))
            for other in gains
        )
    ]


def _t_quantile(n: int, confidence: float) -> float:
    return float(special.stdtrit(n - 1, (1 + confidence) / 2))


def _seeds_needed(effect: float, confidence: float) -> int | None:
    """Smallest n with the wanted power, for a mean difference of so many standard deviations."""
    if effect < 1e-12:  # 0 but for rounding
        return None
    quantiles = float(special.ndtri((1 + confidence) / 2) + special.ndtri(_POWER))
    normal = (quantiles / effect) ** 2  # what it takes when the spread is known: a lower bound
    if normal > _MANY_SEEDS:
        return math.ceil(normal)
    n = max(2, math.floor(normal))
    while _power(n, effect, confidence) < _POWER:
        n += 1
    return n


def _power(n: int, effect: float, confidence: float) -> float:
    """Probability that the t interval of n seeds leaves out 0."""
    critical = _t_quantile(n, confidence)
    # The noncentral t is NaN far out, where the power is 1 for any n: 100 is as good as more.
    shift = min(effect, 100.0) * math.sqrt(n)
    # And where the chance of leaving out 0 on the other side is too small to be computed.
    below = special.nctdtr(n - 1, shift, -critical)
    inside = special.nctdtr(n - 1, shift, critical) - (0.0 if math.isnan(below) else below)
    return 1 - float(inside)


def _interval(low: float, high: float, digits: int, confidence: float) -> str:
    return (
        f"{100 * confidence:g} % paired t interval {_decimal(low, digits)} to "
        f"{_decimal(high, digits)}"
    )


def _decimal(value: float, digits: int, *, sign: bool = False) -> str:
    """A rounded number, never minus zero."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:+.{digits}f}" if sign else f"{rounded:.{digits}f}"


def _needed_text(needed: int | None) -> str:
    if needed is None:
        return ""
    count = f"more than {_MANY_SEEDS:,}" if needed > _MANY_SEEDS else f"about {needed:,}"
    return f": would need {count} seeds"

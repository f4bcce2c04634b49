"""A comparison of arms over the same seeds, as text and as Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.reports.paired import Paired, holm, paired_difference, verdict
from orchestrator.reports.tables import (
    NOTHING,
    Table,
    deviation,
    difference_unit,
    facts_table,
    format_difference,
    format_p,
    format_score,
    format_settings,
    markdown_table,
    mean,
    shorten,
    text_table,
)

CONFIDENCE = 0.95


class Arm(NamedTuple):
    """One of the things compared: the experiment with some settings changed."""

    name: str
    settings: Mapping[str, Any]
    """What sets it apart, by dotted path."""
    scores: Mapping[int, float]
    """The comparison's metric by seed, of the seeds that finished."""
    val_scores: Mapping[int, float]
    """The same on the validation split; may be empty."""
    failures: Mapping[int, str]
    """The error of each seed that failed."""

    @property
    def finished(self) -> dict[int, float]:
        """Scores by seed; a score that is no finite number is none."""
        return {s: self.scores[s] for s in sorted(self.scores) if math.isfinite(self.scores[s])}

    @property
    def errors(self) -> dict[int, str]:
        """Failures by seed, with those whose score is no finite number."""
        odd = {s: f"its score is {v}" for s, v in self.scores.items() if not math.isfinite(v)}
        return dict(sorted({**odd, **self.failures}.items()))


class Comparison(NamedTuple):
    """Arms that were trained with the same seeds."""

    name: str
    metric: str
    """Such as ``test/top1``."""
    higher_is_better: bool
    unit: str
    """Of the metric: ``%``, or nothing."""
    reference: str
    """Name of the arm that the others are compared to."""
    arms: list[Arm]
    seeds: list[int]
    """All that were asked for."""
    facts: Mapping[str, str]
    """What else is worth knowing (data, teacher, student, epochs, command), by name."""


def reference_arm(c: Comparison) -> Arm:
    """The arm that the others are compared to.

    Raises:
        UserError: no arm has its name.
    """
    for arm in c.arms:
        if arm.name == c.reference:
            return arm
    names = ", ".join(arm.name for arm in c.arms)
    raise UserError(f"{c.name}: the reference {c.reference!r} is none of the arms: {names}")


def paired_to_reference(c: Comparison) -> dict[str, Paired | None]:
    """Each other arm's difference over the seeds that it and the reference finished, by name.

    None where they have no seed in common.
    """
    reference = reference_arm(c).finished
    pairs: dict[str, Paired | None] = {}
    for arm in c.arms:
        if arm.name != c.reference:
            own = arm.finished
            common = sorted(own.keys() & reference.keys())
            pairs[arm.name] = (
                paired_difference(
                    [own[s] for s in common], [reference[s] for s in common], confidence=CONFIDENCE
                )
                if common
                else None
            )
    return pairs


def describe_comparison(c: Comparison) -> str:
    """The comparison for the terminal: a table, a sentence per arm, and what failed."""
    sentences, failures = _sentences(c), _failures(c)
    lines = [_headline(c), "", text_table(_scores_table(c)), "", *textwrap.wrap(_footnote(c), 100)]
    lines += ["", *sentences] if sentences else []
    lines += ["", *failures] if failures else []
    return "\n".join(lines)


def comparison_markdown(c: Comparison, figure: str | None = "comparison.png") -> str:
    """The comparison as a Markdown page.

    Args:
        c: the comparison.
        figure: where the picture of `draw_comparison` is, relative to the page; None for none.
    """
    parts = [f"# {c.name}", _headline(c)]
    parts += ["\n".join(f"- {sentence}" for sentence in _sentences(c))]
    parts += ["## Scores", markdown_table(_scores_table(c)), _footnote(c)]
    if figure is not None:
        parts += [f"![Scores by seed and differences to {c.reference}]({figure})", _HOW_TO_SEE]
    failures = _failures(c)
    if failures:
        parts += ["## What failed", "\n".join(f"- {line}" for line in failures)]
    arms = [[arm.name, format_settings(arm.settings) or NOTHING] for arm in c.arms]
    parts += ["## The arms", markdown_table(Table(["arm", "settings"], arms))]
    if c.facts:
        parts += ["## The runs", markdown_table(facts_table(c.facts))]
    parts += ["## How to read it", _HOW_TO_READ]
    return "\n\n".join(part for part in parts if part) + "\n"


_HOW_TO_SEE = (
    "Left: a point for each seed, a thin line from arm to arm for the same seed, the mean as a bar "
    "and one standard deviation to each side of it. Right: the same seeds' differences to the "
    "reference, their mean and its 95 % interval; an interval that does not touch the zero line "
    "shows a difference."
)

_HOW_TO_READ = (
    "In every arm the same seed gives the same initialisation, order of images and augmentation, "
    "so arms are compared seed by seed: what a seed does to all arms alike cancels. The interval "
    "is Student's t interval of the mean of these differences. It says where the mean over many "
    'seeds would lie, on this data and split; other data is another question. "No difference '
    'shown" is not "no difference": the number of seeds that follows is how many would show a '
    "difference as large as the observed one with 80 % probability. It is a rough number where "
    "the interval is wide."
)


def _headline(c: Comparison) -> str:
    better = "higher" if c.higher_is_better else "lower"
    seeds = ", ".join(str(seed) for seed in c.seeds)
    unit = f" in {c.unit}" if c.unit else ""
    plural = "seed" if len(c.seeds) == 1 else "seeds"
    return f"{c.name}: {c.metric}{unit} with {plural} {seeds}; {better} is better"


def _scores_table(c: Comparison) -> Table:
    pairs = paired_to_reference(c)
    adjusted = dict(zip(pairs, holm([pair and pair.p for pair in pairs.values()]), strict=True))
    with_val = any(arm.val_scores for arm in c.arms)
    header = ["arm", "n", "mean", "sd", "best", "worst"]
    header += ["val mean"] if with_val else []
    header += [f"to {c.reference}", f"{100 * CONFIDENCE:g} % interval", _p_name(pairs)]
    rows = []
    for arm in c.arms:
        scores = list(arm.finished.values())
        best, worst = (max, min) if c.higher_is_better else (min, max)
        numbers = [mean(scores), deviation(scores)]
        numbers += [best(scores), worst(scores)] if scores else [None, None]
        if with_val:
            numbers.append(mean([v for v in arm.val_scores.values() if math.isfinite(v)]))
        name = f"{arm.name} (reference)" if arm.name == c.reference else arm.name
        row = [name, str(len(scores)), *(format_score(number, c.unit) for number in numbers)]
        pair = pairs.get(arm.name)
        if arm.name == c.reference:
            row += [NOTHING] * 3
        else:
            row += [
                format_difference(pair and pair.mean, c.unit),
                _interval(pair, c.unit),
                format_p(adjusted[arm.name]),
            ]
        rows.append(row)
    return Table(header, rows)


def _p_name(pairs: Mapping[str, Paired | None]) -> str:
    return "p (Holm)" if len(pairs) > 1 else "p"


def _interval(pair: Paired | None, unit: str) -> str:
    if pair is None or pair.low is None:
        return NOTHING
    return f"{format_difference(pair.low, unit)} to {format_difference(pair.high, unit)}"


def _footnote(c: Comparison) -> str:
    points = difference_unit(c.unit).strip() or "the metric's unit"
    text = (
        f"sd: standard deviation over seeds. Differences to {c.reference} are in {points}, over "
        f"the seeds that both finished, with the {100 * CONFIDENCE:g} % paired t interval of "
        "their mean."
    )
    if len(c.arms) > 2:
        text += (
            " Intervals and sentences are per arm, not corrected for several comparisons; the "
            "p-values are, by Holm's method."
        )
    return text


def _sentences(c: Comparison) -> list[str]:
    reference = reference_arm(c).finished
    arms = {arm.name: arm for arm in c.arms}
    sentences = []
    for name, pair in paired_to_reference(c).items():
        if pair is None:
            sentences.append(f"{name}: no seed was finished both by it and by {c.reference}")
            continue
        sentence = verdict(
            pair, name, c.reference, higher_is_better=c.higher_is_better, unit=c.unit
        )
        missing = [s for s in c.seeds if s not in reference or s not in arms[name].finished]
        if missing:
            plural = "seed" if len(missing) == 1 else "seeds"
            sentence += (
                f"; without {plural} {', '.join(map(str, missing))}, which not both have finished"
            )
        sentences.append(sentence)
    return sentences


def _failures(c: Comparison) -> list[str]:
    return [
        f"{arm.name}, seed {seed} failed: {shorten(error)}"
        for arm in c.arms
        for seed, error in arm.errors.items()
    ]

"""What a trial is judged by."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from search_spaces._domain import Model
from search_spaces._names import did_you_mean

Mode = Literal["max", "min"]
"""Whether a large or a small value is good."""

_MODES: dict[str, Mode] = {
    "val/top1": "max",
    "val/top5": "max",
    "val/loss": "min",
    "student/parameters": "min",
}
_SIZE = "student/parameters"


class Goal(Model):
    """A metric and which way is better."""

    metric: str
    """`val/top1`, `val/top5`, `val/loss`; beside one of them also `student/parameters`, a count."""
    mode: Mode
    """Whether a large or a small value is good; by default what the metric asks for."""

    @model_validator(mode="before")
    @classmethod
    def _mode_of_the_metric(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("metric"), str):
            return values | {"mode": mode_of(values["metric"], values.get("mode"))}
        return values


def mode_of(metric: str, given: Any = None) -> Any:
    """The mode of a metric, which may be given but not turned round.

    Raises:
        ValueError: nothing can be searched for by this metric, or not in this direction.
    """
    if metric.startswith("test/"):
        raise ValueError(f"metric {metric!r} would tune on the test split: use a val/ metric")
    if metric == "student/latency_ms":
        raise ValueError(
            "metric 'student/latency_ms' cannot be searched by: latency is measured after the "
            "search, alone on the machine, for every finished trial, and the Pareto front over it "
            f"is in the report: use {_SIZE!r} here"
        )
    if metric not in _MODES:
        hint = did_you_mean(metric, _MODES) or f"; metrics: {', '.join(_MODES)}"
        raise ValueError(f"there is no metric {metric!r}{hint}")
    right = _MODES[metric]
    if given in ("max", "min") and given != right:
        raise ValueError(f"mode {given!r} would look for the worst {metric}: use {right!r}")
    return right if given is None else given


def check_goals(goals: tuple[Goal, ...]) -> None:
    """Refuse goals that do not go together; the first must be a validation metric.

    Raises:
        ValueError: says which goal and what is right.
    """
    metrics = [goal.metric for goal in goals]
    for metric in metrics:
        if metrics.count(metric) > 1:
            raise ValueError(f"objectives has {metric!r} twice: give each metric once")
    if metrics[0] == _SIZE:
        raise ValueError(
            f"metric {_SIZE!r} is for a further objective: the smallest network wins by it alone, "
            f"so let a val/ metric come first under `objectives`"
        )

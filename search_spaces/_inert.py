"""Parameters whose values make no difference for one experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces._names import spelt
from search_spaces._space import Space

_ABSENT = object()

_ACTS_THROUGH = {
    "objective.contrast": "objective.dcd_weight",
    "objective.negatives": "objective.dcd_weight",
    "objective.consistency_weight": "objective.dcd_weight",
    "objective.init_temperature": "objective.dcd_weight",
    "objective.min_temperature": "objective.dcd_weight",
    "objective.init_bias": "objective.dcd_weight",
    "objective.projection_dim": "objective.dcd_weight",
    "objective.feature_layer": "objective.dcd_weight",
    "optimizer.scalar_lr_ratio": "objective.dcd_weight",
    "objective.kd_temperature": "objective.kd_weight",
}
"""Settings of a term of the loss, which do nothing where the term's weight is 0."""


def inert_parameters(space: Space, base: Mapping[str, Any]) -> list[str]:
    """A sentence for each parameter that can make no difference for this experiment.

    As many sentences as the space has parameters mean that there is nothing to search.

    Args:
        space: the space.
        base: the experiment's settings by dotted path.
    """
    reasons = [
        _never_active(path, space, base) or _without_effect(path, space, base)
        for path in space.parameters
    ]
    return [reason for reason in reasons if reason]


def _never_active(path: str, space: Space, base: Mapping[str, Any]) -> str:
    for other, allowed in space.parameters[path].when.items():
        needs = f"{path} is not searched: it needs {other} {' or '.join(map(spelt, allowed))}"
        if other in space.parameters:
            # `check_space` has seen that the other one's domain holds these values.
            if _never_active(other, space, base):
                return f"{needs}, which is not searched either"
        elif base.get(other, _ABSENT) not in allowed:
            return f"{needs} and the experiment has {spelt(base.get(other, 'none'))}"
    return ""


def _without_effect(path: str, space: Space, base: Mapping[str, Any]) -> str:
    kind = base.get("schedule.kind")
    if path == "schedule.gamma" and kind != "step" and "schedule.kind" not in space.parameters:
        return f"{path} is searched without effect: the trials' schedule is {kind}"
    weight = _ACTS_THROUGH.get(path)
    if path.startswith("objective.method_args."):
        weight = "objective.method_weight"
    # Another method brings its own weights, and a schedule may switch a term on later.
    if weight is None or "objective.method" in space.parameters or base.get("objective.schedule"):
        return ""
    if weight in space.parameters and not _never_active(weight, space, base):
        is_off = set(space.parameters[weight].values) == {0}
    else:
        is_off = base.get(weight) == 0
    return f"{path} is searched without effect: {weight} is 0" if is_off else ""

"""What stops or changes trials before their end: the settings of each scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from search_spaces._domain import Model, Parameter, Real
from search_spaces._names import did_you_mean

Scheduler = Literal["asha", "median", "pbt", "none"]

CHANGEABLE = (
    "objective.ce_weight",
    "objective.kd_weight",
    "objective.dcd_weight",
    "objective.consistency_weight",
    "objective.method_weight",
    "objective.kd_temperature",
)
"""Settings that may have another value in each epoch of a run."""

_Epochs = Annotated[int, Field(ge=1)]


class Asha(Model):
    """Asynchronous successive halving: at each rung only the best go on."""

    grace: _Epochs | None = None
    """Epochs before the first rung; by default what suits the trials' number of epochs."""
    reduction: Annotated[Real, Field(ge=1.5)] = 3.0
    """One in this many goes on, and each rung lies this many times as far as the one before."""


class Median(Model):
    """A trial stops when its best is worse than the median of the others' means over the epochs up
    to the same one."""

    grace: _Epochs | None = None
    """Epochs before the first comparison; by default what suits the trials' number of epochs."""


class Pbt(Model):
    """Population based training: every few epochs the worst take over the state of the best, with
    changed settings, so that the best member's settings are a schedule."""

    population: Annotated[int, Field(ge=2)] = 8
    """Members, which take the place of `trials`."""
    interval: _Epochs = 3
    """Epochs between two comparisons."""


def check_changeable(parameters: Mapping[str, Parameter]) -> None:
    """Refuse parameters that population based training cannot change while a run goes on.

    Raises:
        ValueError: names the parameter.
    """
    for path, parameter in parameters.items():
        if path not in CHANGEABLE:
            raise ValueError(
                f"parameters.{path}: pbt changes settings while a run goes on, which is possible "
                f"for {', '.join(CHANGEABLE)} only{did_you_mean(path, CHANGEABLE)}"
            )
        for other in parameter.when:
            if other in parameters:
                raise ValueError(
                    f"parameters.{path}.when.{other}: pbt changes every parameter at any time, so "
                    f"none may depend on another that is searched: drop the condition"
                )

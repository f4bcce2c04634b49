"""A search space as data: what a YAML file may say, whatever the experiment looks like."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)

Scalar = bool | int | float | str | None
"""One value of a setting."""
Kind = Literal["uniform", "loguniform", "quniform", "randint", "choice", "grid"]
"""How the values of a setting are drawn."""

_FORMS: dict[Kind, str] = {
    "uniform": "[low, high]",
    "loguniform": "[low, high]",
    "quniform": "[low, high, step]",
    "randint": "[low, high]",
    "choice": "[value, ...]",
    "grid": "[value, ...]",
}


def _scalar(value: Any) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{value!r:.60} is not a number, a text, true, false or null")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.60} is not a finite number")
    return value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _one_type(values: tuple[int | float, ...]) -> tuple[int | float, ...]:
    whole = all(isinstance(value, int) for value in values)
    return values if whole else tuple(float(value) for value in values)


# One error for a bad item, where a union would give one for each of its members.
_Value = Annotated[Scalar, PlainValidator(_scalar)]
_Number = Annotated[int | float, PlainValidator(_number)]
_Real = Annotated[float, BeforeValidator(_number)]
_Whole = Annotated[int, Field(strict=True)]

# YAML has lists only, which a strict tuple would refuse.
_Reals = Annotated[tuple[_Real, ...], Field(strict=False)]
_Numbers = Annotated[tuple[_Number, ...], Field(strict=False), AfterValidator(_one_type)]
_Wholes = Annotated[tuple[_Whole, ...], Field(strict=False)]
_Values = Annotated[tuple[_Value, ...], Field(strict=False)]
_OneOrMore = Annotated[
    tuple[_Value, ...], Field(strict=False, min_length=1), BeforeValidator(_as_list)
]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class Parameter(_Model):
    """One searched setting: exactly one domain, and perhaps a condition."""

    uniform: _Reals | None = None
    """[low, high]: any number between the two, all equally likely."""
    loguniform: _Reals | None = None
    """[low, high], both above 0: any number between the two, its logarithm uniform."""
    quniform: _Numbers | None = None
    """[low, high, step]: low, low + step, ..., high; whole numbers when all three are."""
    randint: _Wholes | None = None
    """[low, high]: any whole number from low to high, both included."""
    choice: _Values | None = None
    """Any one of these values; a single value fixes the setting."""
    grid: _Values | None = None
    """Each of these values in turn; for searcher `grid`."""
    when: dict[str, _OneOrMore] = {}
    """Searched only where each of these settings has the given value, or one of the given values.
    A setting that is itself searched, and inactive in a trial, has no value there."""

    @property
    def kind(self) -> Kind:
        """Which of the domains this is."""
        return self._given()[0]

    @property
    def values(self) -> tuple[Scalar, ...]:
        """What the domain was given: its ends (and step), or all of its values."""
        values: tuple[Scalar, ...] = getattr(self, self.kind)
        return values

    def contains(self, value: Scalar) -> bool:
        """Whether the domain can give this value."""
        if self.kind in ("choice", "grid"):
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self._ends()
        if not low <= value <= high:
            return False
        if self.kind == "randint":
            return isinstance(value, int)
        return self.kind != "quniform" or _on_steps(value - low, self._step())

    @model_validator(mode="after")
    def _one_domain(self) -> Parameter:
        given = self._given()
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"needs exactly one domain of {', '.join(_FORMS)}; found {found}")
        kind, values = self.kind, self.values
        takes = f"{kind} takes {_FORMS[kind]}"
        if kind in ("choice", "grid"):
            if not values:
                raise ValueError(f"{takes}, at least one value")
            if len(set(values)) < len(values):
                raise ValueError(f"{takes}, each value once, not {list(values)}")
            return self
        if len(values) != _FORMS[kind].count(",") + 1:
            raise ValueError(f"{takes}, not {list(values)}")
        low, high = self._ends()
        if not low < high:
            raise ValueError(f"{takes} with low below high, not {list(values)}")
        if kind == "loguniform" and low <= 0:
            raise ValueError(f"{takes} with low above 0, not {list(values)}")
        if kind == "quniform" and (self._step() <= 0 or not _on_steps(high - low, self._step())):
            raise ValueError(f"{takes} with high a whole number of steps above low, not {values}")
        return self

    def _given(self) -> list[Kind]:
        return [kind for kind in _FORMS if getattr(self, kind) is not None]

    def _ends(self) -> tuple[float, float]:
        low, high = self.values[:2]
        assert isinstance(low, int | float)  # the types of the domains' fields
        assert isinstance(high, int | float)
        return low, high

    def _step(self) -> float:
        assert self.quniform is not None
        return self.quniform[2]


class Space(_Model):
    """What a search varies, how it looks for the best, and where it starts."""

    title: str = Field(min_length=1)
    """What the space is, in a few words."""
    description: str = Field(min_length=1)
    """What it searches and what it leaves alone, and why."""
    metric: str = Field("val/top1", min_length=1)
    """Name of the metric that a trial is judged by."""
    mode: Literal["max", "min"] = "max"
    """Whether a large or a small metric is good."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """What stops bad trials early: successive halving, the median of the others, or nothing."""
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    """What picks the next point: Optuna's TPE, chance, or every point of the grid."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """How many points are tried; not given for a grid, whose points are counted."""
    parameters: dict[str, Parameter] = Field(min_length=1)
    """Dotted path of each searched setting. A setting that another's `when` names comes first."""
    first: dict[str, _Value] = {}
    """The point tried before all others: a value for every parameter that is active there."""

    @model_validator(mode="after")
    def _consistent(self) -> Space:
        if self.metric.startswith("test/"):
            raise ValueError(
                f"metric {self.metric!r} would tune on the test split: use a val/ metric"
            )
        for path, parameter in self.parameters.items():
            if (parameter.kind == "grid") != (self.searcher == "grid"):
                right = "choice" if parameter.kind == "grid" else "grid"
                raise ValueError(
                    f"parameters.{path}: searcher {self.searcher!r} cannot use a "
                    f"{parameter.kind} domain: make it {right}, or change the searcher"
                )
        if (self.trials is None) != (self.searcher == "grid"):
            raise ValueError(
                "trials is not for searcher 'grid', which tries every point: drop it"
                if self.searcher == "grid"
                else f"trials is missing: searcher {self.searcher!r} needs to know how many"
            )
        return self


def _on_steps(distance: float, step: float) -> bool:
    """Whether a distance is a whole number of steps, but for the rounding of decimal fractions."""
    return math.isclose(distance / step, round(distance / step), rel_tol=1e-9, abs_tol=1e-9)

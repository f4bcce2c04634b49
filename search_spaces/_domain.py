"""One searched setting: what its values are drawn from, and when."""

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
Value = Annotated[Scalar, PlainValidator(_scalar)]
_Number = Annotated[int | float, PlainValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
_Whole = Annotated[int, Field(strict=True)]

# YAML has lists only, which a strict tuple would refuse.
_Reals = Annotated[tuple[Real, ...], Field(strict=False)]
_Numbers = Annotated[tuple[_Number, ...], Field(strict=False), AfterValidator(_one_type)]
_Wholes = Annotated[tuple[_Whole, ...], Field(strict=False)]
_Values = Annotated[tuple[Value, ...], Field(strict=False)]
_OneOrMore = Annotated[
    tuple[Value, ...], Field(strict=False, min_length=1), BeforeValidator(_as_list)
]


class Model(BaseModel):
    """Base of all parts of a space: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class Parameter(Model):
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
        low, high = self.ends()
        if not low <= value <= high:
            return False
        if self.kind == "randint":
            return isinstance(value, int)
        return self.kind != "quniform" or _on_steps(value - low, self.step())

    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value of a domain of numbers."""
        low, high = self.values[:2]
        assert isinstance(low, int | float)  # the types of the domains' fields
        assert isinstance(high, int | float)
        return low, high

    def step(self) -> float:
        """The distance between two values of a `quniform`."""
        assert self.quniform is not None
        return self.quniform[2]

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
        low, high = self.ends()
        if not low < high:
            raise ValueError(f"{takes} with low below high, not {list(values)}")
        if kind == "loguniform" and low <= 0:
            raise ValueError(f"{takes} with low above 0, not {list(values)}")
        if kind == "quniform" and (self.step() <= 0 or not _on_steps(high - low, self.step())):
            raise ValueError(f"{takes} with high a whole number of steps above low, not {values}")
        return self

    def _given(self) -> list[Kind]:
        return [kind for kind in _FORMS if getattr(self, kind) is not None]


def _on_steps(distance: float, step: float) -> bool:
    """Whether a distance is a whole number of steps, but for the rounding of decimal fractions."""
    return math.isclose(distance / step, round(distance / step), rel_tol=1e-9, abs_tol=1e-9)

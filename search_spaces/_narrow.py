"""A space around a run: the wide ranges of a space cut to the surroundings of the run's values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from search_spaces._domain import Parameter, Scalar
from search_spaces._points import is_active
from search_spaces._space import Around, Space

_FLOORS = {"objective.init_temperature": "objective.min_temperature"}
"""Settings that may not go below another one."""


def narrow(space: Space, values: Mapping[str, Any], *, where: str) -> Space:
    """The space around a run, whose settings are the first point.

    A `loguniform` becomes [value / factor, value x factor], a `uniform` [value - span x width,
    value + span x width], both cut to the space's range; a `choice` becomes the run's value alone.
    A `loguniform` setting that is 0 in the run is a weight of something that the run did without:
    it is fixed at 0. A parameter that is not active in the run is dropped.

    Args:
        space: a space with `around`.
        values: the run's settings by dotted path. A setting whose value the program finds, such as
            a bias of `auto`, must come as the number it stood for.
        where: names the run in errors.

    Raises:
        ValueError: the space is not one around a run, a value of the run is missing or outside the
            space's range, or nothing remains to be searched.
    """
    if space.around is None:
        raise ValueError(
            f"{space.title!r} is searched as it is: only a space with `around` can be narrowed to "
            f"the surroundings of a run"
        )
    parameters: dict[str, dict[str, Any]] = {}
    first: dict[str, Scalar] = {}
    for path, parameter in space.parameters.items():
        if is_active(parameter, first, space, values):
            place = f"{where}: {path}"
            if path not in values:
                raise ValueError(f"{place}: the run has no value for it: take another run")
            first[path] = values[path]
            floor = values.get(_FLOORS.get(path, ""), -math.inf)
            domain = _surroundings(parameter, values[path], space.around, floor, place=place)
            # What a condition names has one value now, where it is searched.
            when = {k: (first[k],) if k in first else v for k, v in parameter.when.items()}
            parameters[path] = domain | {"when": when}
    if all(set(domain) <= {"choice", "when"} for domain in parameters.values()):
        raise ValueError(
            f"{where}: the run uses none of the numbers that this space searches: take another run"
        )
    own = {"parameters": parameters, "first": first, "around": None}
    return Space.model_validate(space.model_dump() | own)


def _surroundings(
    parameter: Parameter, value: Scalar, around: Around, floor: float, *, place: str
) -> dict[str, Any]:
    if parameter.kind == "loguniform" and value == 0:
        return {"choice": [value]}
    if not parameter.contains(value):
        domain = f"{parameter.kind} {list(parameter.values)}"
        raise ValueError(f"{place}: the run's value {value!r} is outside the space's {domain}")
    if parameter.kind == "choice":
        return {"choice": [value]}
    assert isinstance(value, int | float)  # `contains` has seen to it
    low, high = parameter.ends()
    if parameter.kind == "loguniform":
        low, high = max(low, value / around.factor), min(high, value * around.factor)
    else:
        reach = around.span * (high - low)
        low, high = max(low, value - reach), min(high, value + reach)
    low = max(low, floor)
    return {parameter.kind: [low, high]} if low < high else {"choice": [value]}

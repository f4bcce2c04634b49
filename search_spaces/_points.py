"""Points of a space: which settings are searched in one, and points that stand for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from search_spaces._domain import Parameter, Scalar
from search_spaces._names import spelt
from search_spaces._space import Space

_ABSENT = object()


def is_active(
    parameter: Parameter, chosen: Mapping[str, Any], space: Space, base: Mapping[str, Any]
) -> bool:
    """Whether a parameter is searched at a point, by its conditions.

    Args:
        parameter: one of the space's.
        chosen: values of the parameters above it that are active at this point.
        space: the space.
        base: the experiment's settings by dotted path, for conditions on what is not searched.
    """
    return all(
        (chosen if other in space.parameters else base).get(other, _ABSENT) in allowed
        for other, allowed in parameter.when.items()
    )


def first_point(space: Space, base: Mapping[str, Any]) -> dict[str, Scalar]:
    """The space's first point, without what is not active for this experiment; may be empty."""
    return _complete(space, base, space.first) if space.first else {}


def grid_points(space: Space, base: Mapping[str, Any]) -> list[dict[str, Scalar]]:
    """Every point of a grid once, in the order of its parameters; the last one varies fastest.

    The space's first point, where it has one, comes before all others.

    Raises:
        ValueError: the space is no grid.
    """
    if space.searcher != "grid":
        raise ValueError(f"{space.title}: searcher {space.searcher!r} has no list of points")
    points: list[dict[str, Scalar]] = [{}]
    for path, parameter in space.parameters.items():
        points = [
            {**point, **own}
            for point in points
            for own in (
                [{path: value} for value in parameter.values]
                if is_active(parameter, point, space, base)
                else [{}]
            )
        ]
    first = first_point(space, base)
    return [first, *(point for point in points if point != first)] if first else points


def corner_points(space: Space, base: Mapping[str, Any]) -> list[tuple[str, dict[str, Scalar]]]:
    """Points that together show every end and every value of every domain, each with what it shows.

    The first of them is the space's first point or, without one, the experiment's own values (the
    middle of a domain where they lie outside). Each other one varies a single setting, and beside
    it only what that one depends on, or what becomes active by it, which takes its middle.
    """
    start = dict(space.first) or {
        path: base[path]
        for path, parameter in space.parameters.items()
        if path in base and parameter.contains(base[path])
    }
    points = [("the starting point", _complete(space, base, start))]
    for path, parameter in space.parameters.items():
        values = parameter.values if parameter.kind in ("choice", "grid") else parameter.ends()
        needed = _needed(path, space, start)
        for value in values:
            point = _complete(space, base, {**start, **needed, path: value})
            if path in point and all(point != other for _, other in points):
                points.append((_description({path: value, **needed}), point))
    return points


def _complete(
    space: Space, base: Mapping[str, Any], wanted: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """The point with the wanted values: only active parameters, and each of them."""
    point: dict[str, Scalar] = {}
    for path, parameter in space.parameters.items():
        if is_active(parameter, point, space, base):
            point[path] = wanted[path] if path in wanted else _middle(parameter)
    return point


def _needed(path: str, space: Space, start: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What must be changed at a point so that the conditions on searched settings hold."""
    needed: dict[str, Scalar] = {}
    for other, allowed in space.parameters[path].when.items():
        if other in space.parameters:
            needed |= _needed(other, space, start)
            if other not in start or start[other] not in allowed:
                needed[other] = allowed[0]
    return needed


def _middle(parameter: Parameter) -> Scalar:
    if parameter.kind in ("choice", "grid"):
        return parameter.values[0]
    low, high = parameter.ends()
    if parameter.kind == "randint":
        return int(low + high) // 2
    if parameter.kind == "quniform":
        return low + round((high - low) / parameter.step()) // 2 * parameter.step()
    return math.sqrt(low * high) if parameter.kind == "loguniform" else (low + high) / 2


def _description(settings: Mapping[str, Scalar]) -> str:
    first, *others = [f"{path} = {spelt(value)}" for path, value in settings.items()]
    return f"{first} with {' and '.join(others)}" if others else first

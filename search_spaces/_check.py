"""A search space held against the class of the experiment that it varies."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from search_spaces._domain import Parameter, Scalar
from search_spaces._names import did_you_mean
from search_spaces._space import Space

_BIAS = "objective.init_bias"
_CONTRAST = "objective.contrast"


def check_space(space: Space, spec_class: type[BaseModel], *, where: str) -> None:
    """Refuse a space that does not fit an experiment of this class.

    Every path must exist, every end and value suit its setting, every condition be able to hold,
    the first point lie in the domains, and no setting be searched only where it has no effect.
    Rules between settings (`init_temperature` not below `min_temperature`) are the experiment's.

    Args:
        space: the space, already valid in itself.
        spec_class: the experiment's class.
        where: names the origin of the space in errors.

    Raises:
        ValueError: the first thing that is wrong: origin, path and what is right.
    """
    settings = _settings(spec_class)
    for path in space.parameters:
        _find(path, settings, place=f"{where}: parameters.{path}")
    _check_bias(space, settings, where=where)
    for path, parameter in space.parameters.items():
        place = f"{where}: parameters.{path}"
        # The steps of a quniform are no value of the setting.
        ends = parameter.values if parameter.kind in ("choice", "grid") else parameter.values[:2]
        for value in ends:
            _check_value(
                value, _find(path, settings, place=place), place=f"{place}.{parameter.kind}"
            )
    _check_conditions(space, settings, where=where)
    _check_first(space, settings, where=where)


class _Setting(NamedTuple):
    annotation: Any
    config: ConfigDict
    default: Any


def _settings(model: type[BaseModel], prefix: str = "") -> dict[str, _Setting]:
    """Every field of a model and its sections by dotted path, as YAML spells it."""
    settings: dict[str, _Setting] = {}
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        is_union = get_origin(field.annotation) in (Union, UnionType)
        options = get_args(field.annotation) if is_union else (field.annotation,)
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if set(options) - {*sections, NoneType}:
            settings[path] = _Setting(field.rebuild_annotation(), model.model_config, field.default)
        for section in sections:
            settings |= _settings(section, f"{path}.")
    return settings


def _find(path: str, settings: dict[str, _Setting], *, place: str) -> _Setting:
    if path in settings:
        return settings[path]
    for name, setting in settings.items():
        if path.startswith(f"{name}.") and get_origin(setting.annotation) is dict:
            return _Setting(get_args(setting.annotation)[1], setting.config, None)
    inside = [name for name in settings if name.startswith(f"{path}.")]
    if inside:
        raise ValueError(f"{place}: {path!r} is a section: name a setting in it, as {inside[0]!r}")
    raise ValueError(f"{place}: the experiment has no {path!r}{did_you_mean(path, settings)}")


def _check_value(value: Scalar, setting: _Setting, *, place: str) -> None:
    try:
        TypeAdapter(setting.annotation, config=setting.config).validate_python(value)
    except ValidationError as error:
        rules = dict.fromkeys(item["msg"].removeprefix("Input ") for item in error.errors())
        first, *others = rules
        rule = " or ".join([first, *(other.removeprefix("should be ") for other in others)])
        raise ValueError(f"{place}: {value!r} does not suit the setting, which {rule}") from error


def _check_bias(space: Space, settings: dict[str, _Setting], *, where: str) -> None:
    """The softmax of logits that are all shifted by b is the same for every b."""
    if _BIAS not in space.parameters or _CONTRAST not in settings:
        return
    condition = space.parameters[_BIAS].when.get(_CONTRAST)
    searched = space.parameters.get(_CONTRAST)
    if searched is not None:
        contrasts = {value for value in searched.values if condition is None or value in condition}
    else:
        contrasts = set(condition or [settings[_CONTRAST].default])
    if contrasts <= {"softmax"}:
        raise ValueError(
            f"{where}: parameters.{_BIAS}: this space searches the bias under softmax only, where "
            f"it is inert (softmax ignores a shift of all logits): let {_CONTRAST} be sigmoid and "
            f"add `when: {{{_CONTRAST}: sigmoid}}`, or drop the bias"
        )


def _check_conditions(space: Space, settings: dict[str, _Setting], *, where: str) -> None:
    above: dict[str, Parameter] = {}
    for path, parameter in space.parameters.items():
        for other, values in parameter.when.items():
            place = f"{where}: parameters.{path}.when.{other}"
            setting = _find(other, settings, place=place)
            for value in values:
                _check_value(value, setting, place=place)
            if other not in space.parameters:
                continue
            if other == path:
                raise ValueError(f"{place}: a setting cannot be its own condition: drop it")
            if path in space.parameters[other].when:
                raise ValueError(
                    f"{place}: {path} and {other} are each other's condition: drop one of the two"
                )
            if other not in above:
                raise ValueError(f"{place}: a condition names a parameter above: move it up")
            if above[other].kind in ("uniform", "loguniform"):
                raise ValueError(
                    f"{place}: {other} has a {above[other].kind} domain, which never hits one "
                    f"value: a condition needs choice, grid, randint or quniform"
                )
            for value in values:
                _check_inside(value, above[other], place=place)
        above[path] = parameter


def _check_first(space: Space, settings: dict[str, _Setting], *, where: str) -> None:
    if not space.first:
        return
    for path, value in space.first.items():
        place = f"{where}: first.{path}"
        if path not in space.parameters:
            hint = did_you_mean(path, space.parameters)
            raise ValueError(f"{place}: {path!r} is not one of the parameters{hint}")
        _check_value(value, _find(path, settings, place=place), place=place)
        _check_inside(value, space.parameters[path], place=place)
    for path, parameter in space.parameters.items():
        # Parameters above have been seen to be in `first` exactly where they are active.
        unmet = [
            f"{other}: {' or '.join(map(str, values))}"
            for other, values in parameter.when.items()
            if other in space.parameters
            and (other not in space.first or space.first[other] not in values)
        ]
        if unmet and path in space.first:
            raise ValueError(
                f"{where}: first.{path}: is not active at this point, for it needs "
                f"{' and '.join(unmet)}: drop it"
            )
        if not unmet and path not in space.first:
            raise ValueError(f"{where}: first: has no value for {path}: add one")


def _check_inside(value: Scalar, parameter: Parameter, *, place: str) -> None:
    if not parameter.contains(value):
        domain = f"{parameter.kind} {list(parameter.values)}"
        raise ValueError(f"{place}: {value!r} is outside the parameter's domain, {domain}")

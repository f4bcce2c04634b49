"""Ready search spaces, one YAML file each, and the function that loads and checks one.

A space knows settings by their dotted path in an experiment (``objective.kd_weight``). The class of
the experiment is given by the caller, so this package depends on no other of the project.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from search_spaces._check import check_space
from search_spaces._domain import Kind, Parameter, Scalar
from search_spaces._goal import Goal, Mode
from search_spaces._inert import inert_parameters
from search_spaces._names import did_you_mean
from search_spaces._narrow import narrow
from search_spaces._points import corner_points, first_point, grid_points, is_active
from search_spaces._scheduler import Asha, Median, Pbt
from search_spaces._space import Around, Space
from search_spaces._yaml import parse_yaml, yaml_fault

__all__ = [
    "Around",
    "Asha",
    "Goal",
    "Kind",
    "Median",
    "Mode",
    "Parameter",
    "Pbt",
    "Scalar",
    "Space",
    "available_spaces",
    "check_space",
    "corner_points",
    "first_point",
    "grid_points",
    "inert_parameters",
    "is_active",
    "load_space",
    "narrow",
    "parse_yaml",
    "yaml_fault",
]

_SECTIONS: dict[str, type[BaseModel]] = {
    "parameters": Parameter,
    "objectives": Goal,
    "asha": Asha,
    "median": Median,
    "pbt": Pbt,
    "around": Around,
}

_SHIPPED = Path(__file__).parent


def available_spaces() -> list[str]:
    """Names of the shipped spaces, sorted."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def load_space(name_or_path: str | Path, spec_class: type[BaseModel]) -> Space:
    """Read a shipped space by name, or a YAML file of your own, and check it.

    A space with `around` comes as it is written: `narrow` it before use.

    Args:
        name_or_path: a name from `available_spaces`; what ends in ``.yaml`` or ``.yml`` or has a
            folder in it is a path.
        spec_class: the experiment's class, in which every dotted path must exist.

    Raises:
        ValueError: there is no such space, or something in it is wrong; one sentence with the file,
            the place and what is right.
    """
    path = _find(name_or_path)
    where = str(path)
    values = _read_yaml(path)
    try:
        space = Space.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{where}: {_first_mistake(error)}") from error
    check_space(space, spec_class, where=where)
    return space


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    names = available_spaces()
    if name_or_path not in names:
        raise ValueError(
            f"no search space {name_or_path!r}{did_you_mean(name_or_path, names)}: give one of "
            f"{', '.join(names)}, or the path of a .yaml file"
        )
    return _SHIPPED / f"{name_or_path}.yaml"


def _read_yaml(path: Path) -> Any:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such file; the shipped spaces are {', '.join(available_spaces())}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {yaml_fault(error)}") from error


def _first_mistake(error: ValidationError) -> str:
    """The first thing that is wrong with a file's shape: place, rule, and what was found."""
    # A misspelt key explains why another is missing.
    item = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    names = [str(part) for part in item["loc"] if part != "[key]"]
    place = f"{'.'.join(names)}: " if names else ""
    if item["type"] == "missing":
        return f"{place}is missing"
    if item["type"] == "extra_forbidden":
        model = _SECTIONS[names[0]] if len(names) > 1 else Space
        known = list(model.model_fields)
        hint = did_you_mean(names[-1], known) or f"; known keys: {', '.join(known)}"
        return f"{place}unknown key {names[-1]!r}{hint}"
    if item["type"] == "value_error":
        return f"{place}{item['ctx']['error']}"
    text = item["msg"].removeprefix("Input ")
    text = re.sub(r"valid dictionary( or instance of \w+)?", "mapping", text)
    return f"{place}{text.replace('valid tuple', 'list')}, found {item['input']!r:.60}"

"""Reading an experiment: YAML, overrides, paths, and errors that name file, place and remedy."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.error_text import nearest
from orchestrator.errors import UserError
from orchestrator.spec import Experiment, cache_section
from orchestrator.spec.methods import base_name, find_method, method_weights
from search_spaces import parse_yaml, yaml_fault

# Sections and fields that say where a run happens, not what it computes; see `identity`.
_PLACEMENT_SECTIONS = ("tracking", "storage")
_PLACEMENT_FIELDS = ("cpus_per_worker", "gpus_per_worker", "wait_s", "max_failures")
_CACHE_PLACEMENT_FIELDS = ("mode", "path", "max_gib")


def load_experiment(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment file, apply ``a.b=value`` overrides, resolve relative paths.

    Raises:
        UserError: the file is missing, not YAML, or not a valid experiment.
    """
    values = read_yaml(Path(path))
    if isinstance(values.get("teacher_cache"), str | bool):
        # One word for the whole section; an override may be of one of its fields.
        values["teacher_cache"] = cache_section(values["teacher_cache"])
    apply_overrides(values, overrides)
    return build_experiment(values, where=str(path))


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set fields of plain values in place, by ``a.b=value``.

    Raises:
        UserError: one is nothing of the kind.
    """
    for override in overrides:
        key, value = parse_override(override)
        _set(values, key.split("."), value, f"--set {override}")


def build_experiment(values: Mapping[str, Any], *, where: str) -> Experiment:
    """Validate plain values as an experiment; ``where`` names their origin in errors."""
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error, Experiment, where=where)) from error
    return _with_absolute_paths(experiment, Path.cwd())


def changed(experiment: Experiment, updates: Mapping[str, Any]) -> Experiment:
    """A copy of an experiment with dotted fields changed, validated again.

    Another method brings its own weights and hyperparameters: those of the old one are dropped.
    """
    values = experiment.model_dump()
    _leave_method(values["objective"], updates.get("objective.method"))
    for path, value in updates.items():
        _set(values, path.split("."), value, path)
    return build_experiment(values, where="the changed experiment")


def _leave_method(objective: dict[str, Any], method: Any) -> None:
    """Drop what another method does not take: defaults of weights, hyperparameters, layers."""
    old = objective["method"]
    if not isinstance(method, str) or method == old:
        return
    for key, default in method_weights(old).items():
        if objective[key] == (default or 0.0):
            del objective[key]
    if base_name(method) != base_name(old):
        del objective["method_args"]
        module = find_method(method)
        if module is None or module.hints == "none":
            del objective["hint_layers"]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted paths; lists and empty mappings stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def identity(experiment: Experiment) -> dict[str, Any]:
    """The dotted fields that define what is computed.

    Tracking, storage and resources are left out, so a run can be resumed on another cluster. The
    number of workers counts only where it changes the result: under unsynchronised BatchNorm.
    """
    values = experiment.model_dump(mode="json", exclude=set(_PLACEMENT_SECTIONS))
    scaling = values["scaling"]
    for field in _PLACEMENT_FIELDS:
        del scaling[field]
    if values["teacher_cache"]["mode"] == "off":
        values["teacher_cache"]["dtype"] = "auto"  # nothing is rounded then
    for field in _CACHE_PLACEMENT_FIELDS:
        del values["teacher_cache"][field]
    workers = scaling.pop("workers")
    local = scaling.pop("batch_norm") == "local" and workers > 1
    scaling["batch_norm"] = f"local over {workers} workers" if local else "whole batch"
    return flatten(values)


def identity_hash(experiment: Experiment) -> str:
    """Eight hex digits of the identity."""
    canonical = json.dumps(identity(experiment), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def describe(error: ValidationError, model: type[BaseModel], *, where: str) -> str:
    """One line per mistake: file, dotted path, what was found, what is allowed, nearest name."""
    texts: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    hints: dict[str, str] = {}
    for item in error.errors():
        keys = _field_path(model, item)
        path = ".".join(keys)
        if item["type"] == "extra_forbidden":
            names = _field_names(model, keys[:-1])
            hint = nearest(keys[-1], names) or f"; known keys: {', '.join(names)}"
            texts[path] = [f"unknown key {keys[-1]!r}{hint}"]
        elif item["type"] == "missing":
            texts[path] = ["is missing"]
        elif item["type"] == "value_error":
            texts.setdefault(path, []).append(str(item["ctx"]["error"]))
        else:
            # Each member of a union adds its own message about the same value.
            text = item["msg"].replace("Input ", "").replace("String ", "")
            text = re.sub(r"valid dictionary or instance of \w+", "mapping of keys to values", text)
            if item["type"] == "literal_error" and isinstance(item["input"], str):
                choices = re.findall(r"'([^']+)'", str(item["ctx"]["expected"]))
                hints[path] = nearest(item["input"], choices)
            known = texts.setdefault(path, [])
            known.append(text.removeprefix("should be ") if known else text)
            found[path] = f", found {_short(item['input'])}"
    return "\n".join(
        f"{where}: {path + ': ' if path else ''}{' or '.join(dict.fromkeys(text))}"
        f"{found.get(path, '')}{hints.get(path, '')}"
        for path, text in texts.items()
        # A member of a union that did not match says nothing where another knows the key at fault.
        if not any(other.startswith(f"{path}.") for other in texts if path)
    )


def yaml_text(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, in their order."""
    # libyaml's is ten times as fast, which thousands of trials notice; wheels of PyYAML have it.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(values, Dumper=dumper, sort_keys=False)
    return text


def is_uri(text: str) -> bool:
    """Whether a location is a URI (``s3://…``) and not a path."""
    return "://" in text


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in an experiment file, not yet checked.

    Raises:
        UserError: there is no such file, or it is no YAML mapping.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such experiment file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {yaml_fault(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {_short(values)}")
    return values


def parse_override(override: str, *, option: str = "--set") -> tuple[str, Any]:
    """The dotted path and the value of ``a.b=value``.

    Raises:
        UserError: it is nothing of the kind; names the option.
    """
    path, separator, text = override.partition("=")
    if not separator or not path.strip():
        raise UserError(f"{option} {override}: expected PATH=VALUE, as in objective.kd_weight=0.5")
    try:
        return path.strip(), parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"{option} {override}: the value is not valid YAML: {yaml_fault(error)}"
        ) from error


def _set(values: dict[str, Any], keys: Sequence[str], value: Any, where: str) -> None:
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        if not isinstance(values[key], dict):
            raise UserError(f"{where}: {key!r} holds {_short(values[key])}, not a section")
        values = values[key]
    values[keys[-1]] = value


def _with_absolute_paths(experiment: Experiment, base: Path) -> Experiment:
    def absolute(location: str | None) -> str | None:
        if location is None or is_uri(location):
            return location
        return str(base / Path(location).expanduser())

    data = experiment.data
    update: dict[str, Any] = {
        "data": data.model_copy(
            update={"path": absolute(data.path), "test_path": absolute(data.test_path)}
        ),
        "student": experiment.student.model_copy(
            update={"checkpoint": absolute(experiment.student.checkpoint)}
        ),
        "storage": experiment.storage.model_copy(
            update={"path": absolute(experiment.storage.path)}
        ),
    }
    cache = experiment.teacher_cache
    update["teacher_cache"] = cache.model_copy(update={"path": absolute(cache.path)})
    teacher = experiment.teacher
    if teacher is not None:
        fit = teacher.fit
        if fit is not None:
            own = {
                key: absolute(value) if isinstance(value, str) else value
                for key, value in fit.data.items()
                if key in ("path", "test_path")
            }
            fit = fit.model_copy(update={"data": fit.data | own})
        update["teacher"] = teacher.model_copy(
            update={"checkpoint": absolute(teacher.checkpoint), "fit": fit}
        )
    return experiment.model_copy(update=update)


def _field_path(model: type[BaseModel], item: Mapping[str, Any]) -> list[str]:
    """The dotted path of an error; pydantic also puts the members of a union into its location."""
    path: list[str] = []
    for number, part in enumerate(item["loc"], start=1):
        named_last = number == len(item["loc"]) and item["type"] in ("extra_forbidden", "missing")
        if isinstance(part, str) and (named_last or part in _field_names(model, path)):
            path.append(part)
    return path


def _field_names(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields at a dotted path, looking through optional sections."""
    for key in path:
        field = model.model_fields.get(key)
        if field is None:
            break
        options = (field.annotation, *get_args(field.annotation))
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not sections:
            break
        model = sections[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Methods by name: which weights each has, and which hyperparameters it takes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from dcd_core.objectives import Method

WEIGHTS = ("ce_weight", "kd_weight", "dcd_weight", "consistency_weight", "method_weight")
"""Of the terms of the loss."""

_OWN: dict[str, dict[str, float]] = {
    "ce": {"ce_weight": 1.0},
    "kd": {"ce_weight": 1.0, "kd_weight": 1.0},
    "dcd": {"ce_weight": 1.0, "dcd_weight": 1.0, "consistency_weight": 0.5},
    "dcd+kd": {"ce_weight": 1.0, "kd_weight": 1.0, "dcd_weight": 1.0, "consistency_weight": 0.5},
}
_WITH_KD = "+kd"
_REGISTRY = "dcd_core.objectives"


def method_names() -> list[str]:
    """All methods of the objective."""
    return [*_OWN, *(f"{name}{suffix}" for name in _registered() for suffix in ("", _WITH_KD))]


def _registered() -> list[str]:
    """Names in the registry, which is read where it is not imported: that takes torch, and seconds,
    which a schema or a misspelt word need not wait for."""
    if _REGISTRY in sys.modules:
        return list(sys.modules[_REGISTRY].METHODS)
    package = find_spec("dcd_core")
    assert package is not None and package.origin is not None
    source = Path(package.origin).parent / "objectives" / "__init__.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "METHODS":
            assert isinstance(node.value, ast.Dict)
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise AssertionError("the registry has no METHODS")


def base_name(method: str) -> str:
    """A method without the KD beside it."""
    return method.removesuffix(_WITH_KD)


def find_method(method: str) -> type[Method] | None:
    """The module of a method; CE, KD and DCD have none."""
    if method in _OWN:
        return None
    from dcd_core.objectives import METHODS

    return METHODS.get(base_name(method))


def method_weights(method: str) -> dict[str, float | None]:
    """Defaults of the loss weights; None for one that the method ignores."""
    own = _OWN.get(method)
    if own is None:
        module = find_method(method)
        assert module is not None
        own = {"ce_weight": 1.0, "method_weight": module.weight}
        if method.endswith(_WITH_KD):
            own["kd_weight"] = 1.0
    return {weight: own.get(weight) for weight in WEIGHTS}


def check_method_args(method: str, args: Mapping[str, Any]) -> None:
    """Refuse hyperparameters that a method does not take, or that are out of its range.

    Raises:
        ValueError: says what would be right.
    """
    if not args:
        return
    module = find_method(method)
    if module is None:
        raise ValueError(
            f"method_args: method {method!r} takes none: drop them, or change the method"
        )
    import torch

    from dcd_core.objectives import NetworkSizes, Sizes, check_hyperparameters

    try:
        check_hyperparameters(module, list(args))
        network = NetworkSizes(1, ((1, 1, 1),))
        # The method itself knows its ranges. What it draws must not change what others do.
        with torch.random.fork_rng(devices=[]):
            module(Sizes(network, network, torch.zeros(1, dtype=torch.int64)), **args)
    except ValueError as error:
        raise ValueError(f"method_args: {error}") from error


def _known(method: str) -> str:
    names = method_names()
    if method not in names:
        *others, last = map(repr, names)
        expected = f"{', '.join(others)} or {last}"
        raise PydanticCustomError(
            "literal_error", "Input should be {expected}", {"expected": expected}
        )
    return method


def _list_names(schema: dict[str, Any]) -> None:
    schema["enum"] = method_names()


MethodName = Annotated[str, AfterValidator(_known), Field(json_schema_extra=_list_names)]
"""A method, perhaps with KD."""

"""Networks and images that a function of the user's own makes."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from orchestrator.error_text import cause, nearest
from orchestrator.errors import UserError

_SCHEMES = ("torchvision:", "timm:", "mlflow:")
"""What a `module:function` without such a module may be a misspelling of."""


def build_from_function(
    source: str, args: Mapping[str, Any], *, offered: Mapping[str, int]
) -> nn.Module:
    """Call ``module:function`` and return the network it builds.

    The working directory comes first on the Python path, so that a file in it is found.

    Args:
        source: ``module:function``.
        args: keyword arguments; they win over those offered.
        offered: keyword arguments for a signature that names them. ``num_classes`` goes through
            ``**kwargs`` too.

    Raises:
        UserError: there is no such function, it does not take these arguments, it fails, or it
            returns something else than a module.
    """
    network = call_function(source, args, offered=offered, doing="building it")
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{source}: returned a {type(network).__name__}, where a torch.nn.Module is needed"
        )
    return network


def call_function(
    source: str, args: Mapping[str, Any], *, doing: str, offered: Mapping[str, int] | None = None
) -> Any:
    """Call ``module:function`` and return whatever it returns.

    Args:
        source: as in `build_from_function`, and so are `args` and `offered`.
        args: keyword arguments.
        doing: what the call does, for the message when it fails.
        offered: further arguments.

    Raises:
        UserError: there is no such function, it does not take these arguments, or it fails.
    """
    function = _find_function(source)
    signature = _signature(source, function)
    parameters = signature.parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = {
        name: value
        for name, value in (offered or {}).items()
        if name in parameters or (open_ended and name == "num_classes")
    } | dict(args)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"{source}: {error}; it takes ({', '.join(parameters)}) and was given "
            f"({', '.join(arguments)})"
        ) from error
    return call_builder(source, function, arguments, doing=doing)


def call_builder(
    source: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    doing: str = "building it",
) -> Any:
    """Call what builds something; whatever it raises becomes a UserError that names the source."""
    try:
        return function(**arguments)
    # A function of the user's, or a download, can raise anything; a script's may end the program.
    except (Exception, SystemExit) as error:
        raise UserError(f"{source}: {doing} fails: {cause(error)}") from error


def _find_function(source: str) -> Callable[..., Any]:
    module_name, _, function_name = source.partition(":")
    working_directory = os.getcwd()
    if sys.path[0] != working_directory:
        sys.path.insert(0, working_directory)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's file
        if isinstance(error, ModuleNotFoundError) and _is_part_of(error.name, module_name):
            hint = nearest(f"{module_name}:", _SCHEMES)
            raise UserError(
                f"{source}: no module {error.name!r} in {working_directory} or on the Python "
                f"path{hint}"
            ) from error
        raise UserError(f"{source}: importing {module_name} fails: {cause(error)}") from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        what = "is not a function" if hasattr(module, function_name) else "is not there"
        functions = [name for name, value in vars(module).items() if callable(value)]
        raise UserError(
            f"{source}: {function_name!r} {what} in {module.__file__ or module_name}"
            f"{nearest(function_name, functions)}"
        )
    return function


def _signature(source: str, function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError as error:  # some of those written in C
        raise UserError(f"{source}: not a Python function: {cause(error)}") from error


def _is_part_of(missing: str | None, module_name: str) -> bool:
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")

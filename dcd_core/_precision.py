"""Full precision for the functions of the objective."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 when it is in half precision; float64 and integers stay."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def full_precision(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a function of tensors with autocast off and half-precision arguments in float32.

    Exponentials and sums over a whole batch overflow or lose most digits in half precision.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        upcast_args = [_upcast(value) for value in args]
        upcast_kwargs = {key: _upcast(value) for key, value in kwargs.items()}
        device = next(value.device for value in upcast_args if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(*upcast_args, **upcast_kwargs)

    return wrapped


def _upcast(value: Any) -> Any:
    return at_least_float32(value) if isinstance(value, Tensor) else value

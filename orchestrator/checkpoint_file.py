"""Weights that someone else saved: read without running code, and fitted to a network by name."""

from __future__ import annotations

import argparse
import io
import pickletools
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.errors import UserError
from orchestrator.experiment_file import is_uri

# Where savers put the state dict inside their file, in order of preference. The last is our own
# checkpoints' place.
_NESTS = (("model",), ("state_dict",), ("net",), ("model_state_dict",), ("state", "distiller"))
# What wrappers put before each name: DataParallel and DDP, torch.compile, Distiller, FeatureModel.
_PREFIXES = ("module.", "_orig_mod.", "student.", "model.")
# What lies beside `student.` in the state dict of a Distiller.
_BESIDE_STUDENT = ("student_head.", "teacher_head.", "log_temperature", "bias")
_MAX_NAMES = 8

# Numpy's scalars pickle as a call of one function, found here through its public protocol; the
# second name is what numpy 1 wrote.
_numpy_scalar = np.float64(0).__reduce__()[0]
_ALLOWED_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in f"?U{np.typecodes['AllInteger']}{np.typecodes['AllFloat']}"},
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
]


def read_state_dict(location: str) -> dict[str, Tensor]:
    """Read a state dict to the CPU from a checkpoint of torch or of safetensors.

    The weights may be the whole file or nested under ``model``, ``state_dict``, ``net`` or
    ``model_state_dict``; a training checkpoint of ours gives its student. Prefixes that wrappers
    put before every name are stripped.

    Args:
        location: a path, or a URI that pyarrow.fs opens; ``.safetensors`` by its name.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: there is no such file, it is damaged or no checkpoint, it holds no weights, or
            it is a pickle that asks for anything but tensors, plain values, argparse.Namespace and
            numpy scalars. Nothing of such a pickle is run.
    """
    content = _read_bytes(location)
    if location.endswith(".safetensors"):
        return _strip_prefixes(_parse_safetensors(content, location))
    return _strip_prefixes(_weights_in(_parse_torch(content, location), location))


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load a state dict into a model of the same names and shapes.

    Names are compared without the prefixes of wrappers. ``num_batches_tracked``, which checkpoints
    before PyTorch 0.4.1 lack, may be missing.

    Args:
        model: the network; changed in place.
        state: tensors by name.
        where: the setting or file they come from, for the message.

    Raises:
        UserError: naming every missing, unexpected or mis-shaped tensor (eight of each kind at
            most), or those that are not finite.
    """
    own = model.state_dict()
    prefix = _shared_prefix(own)
    if not all(name.startswith(prefix) for name in state):
        state = {prefix + name: tensor for name, tensor in state.items()}
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    missing = [name for name in needed if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in own
        if name in state and state[name].shape != own[name].shape
    }  # name -> (found, wanted)
    if missing or unexpected or shapes:
        raise UserError(f"{where}: {_difference(missing, unexpected, shapes)}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{where}: NaN or infinity in {_names(broken)}: the run that saved it had diverged, "
            "use an earlier checkpoint"
        )
    model.load_state_dict({**own, **state})


def _read_bytes(location: str) -> bytes:
    try:
        if not is_uri(location):
            return Path(location).expanduser().read_bytes()
        from pyarrow.fs import FileSystem

        filesystem, path = FileSystem.from_uri(location)
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
            return content
    except FileNotFoundError as error:
        raise UserError(f"{location}: there is no such checkpoint file") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{location}: the checkpoint cannot be read: {reason}") from error
    except ValueError as error:
        raise UserError(f"{location}: not a URI that pyarrow opens: {error}") from error


def _parse_safetensors(content: bytes, location: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{location}: damaged, or not a safetensors file: {error}") from error


def _parse_torch(content: bytes, location: str) -> Any:
    try:
        with torch.serialization.safe_globals(_ALLOWED_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said below, in a sentence
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint can make the parser raise anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        wanted = refused[1] if refused else _first_global(content)
        if wanted:
            raise UserError(
                f"{location}: refused, and nothing in it was run: it asks for the Python object "
                f"{wanted}, where a checkpoint may hold tensors, plain values, "
                "argparse.Namespace and numpy scalars; save model.state_dict() alone"
            ) from error
        raise UserError(
            f"{location}: damaged, or not a checkpoint that torch.save wrote "
            f"({type(error).__name__}: {_first_sentence(error)})"
        ) from error


def _first_global(content: bytes) -> str | None:
    """The first object that a bare pickle asks for, read without running it."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError):
        return None
    return None


def _weights_in(loaded: Any, location: str) -> Mapping[str, Tensor]:
    for nest in _NESTS:
        found = loaded
        for key in nest:
            found = found.get(key) if isinstance(found, Mapping) else None
        if _is_state_dict(found):
            return found
    # The weights are the file itself, perhaps with an epoch or the arguments beside them.
    if isinstance(loaded, Mapping):
        tensors = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
        nested = [repr(key) for key, value in loaded.items() if _is_state_dict(value)]
        if _is_state_dict(tensors) and not nested:
            return tensors
        found_text = f"a dict with the keys {_names(map(str, loaded)) or '(none)'}"
    else:
        found_text = f"a {type(loaded).__name__}"
    raise UserError(
        f"{location}: holds {found_text}, and no state dict, neither as the whole file nor under "
        f"{', '.join('.'.join(nest) for nest in _NESTS)}"
    )


def _is_state_dict(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = _shared_prefix(state)
    return {name[len(prefix) :]: state[name] for name in state if name.startswith(prefix)}


def _shared_prefix(state: Mapping[str, Tensor]) -> str:
    """The longest chain of wrappers' prefixes that all names share, heads of a Distiller aside."""
    names = list(state)
    stripped = ""
    while True:
        rest = names
        if any(name.startswith("student.") for name in names):
            rest = [name for name in names if not name.startswith(_BESIDE_STUDENT)]
        prefix = next((p for p in _PREFIXES if rest and all(n.startswith(p) for n in rest)), None)
        if prefix is None:
            return stripped
        stripped += prefix
        names = [name.removeprefix(prefix) for name in rest]


def _difference(
    missing: list[str],
    unexpected: list[str],
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> str:
    """One sentence on what does not fit, with the likely cause where the shapes tell it."""
    if not missing and not unexpected:
        leading = {(found[:1], wanted[:1]) for found, wanted in shapes.values()}
        one_layer = len({name.rpartition(".")[0] for name in shapes}) == 1
        same_inputs = all(found[1:] == wanted[1:] for found, wanted in shapes.values())
        if one_layer and same_inputs and len(leading) == 1:
            (((classes,), (data_classes,)),) = leading
            return (
                f"the checkpoint has {classes} classes and the data {data_classes}: use one that "
                "was trained on these classes, or, for a teacher of which only features are used, "
                f"set teacher.num_classes: {classes}"
            )
        if len(shapes) == 1:
            ((found, wanted),) = shapes.values()
            if len(found) == 4 and (found[:1], found[2:]) == (wanted[:1], wanted[2:]):
                hint = "set data.grey_to_rgb: true" if wanted[1] == 1 else "use other images"
                return (
                    f"the checkpoint takes images of {found[1]} channels and these have "
                    f"{wanted[1]}: {hint}, or use a checkpoint for such images"
                )
    parts = []
    if missing:
        parts.append(f"missing {_names(missing)}")
    if unexpected:
        parts.append(f"unexpected {_names(unexpected)}")
    if shapes:
        pairs = (f"{name} {found} instead of {wanted}" for name, (found, wanted) in shapes.items())
        parts.append(f"wrong shape of {_names(pairs)}")
    return f"the weights are not of this network: {'; '.join(parts)}"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _MAX_NAMES
    return ", ".join(listed[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:200] or "no reason given"

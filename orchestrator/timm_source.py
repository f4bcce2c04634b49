"""Networks of timm by name, with or without their weights, where timm is installed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from orchestrator.error_text import cause, nearest
from orchestrator.errors import UserError
from orchestrator.function_source import call_builder
from orchestrator.spec import Normalization
from orchestrator.weights_facts import WeightsFacts

TIMM = "timm:"
"""What a source of this module begins with."""

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm looks for on the hub, in its order, where its record of the weights names no file."""

_HUB_SECONDS = 5.0
"""How long the hub may take to answer the first request."""


def build_timm(
    source: str,
    args: Mapping[str, Any],
    *,
    num_classes: int,
    in_channels: int,
    weights: str | None,
) -> nn.Module:
    """Build a classifier.

    Args:
        source: ``timm:NAME``, without a tag.
        args: further keyword arguments of timm's ``create_model``.
        num_classes: K; with weights of another number, the classifier is a new one.
        in_channels: C; timm fits the first convolution of its weights to them.
        weights: tag of the weights, or ``DEFAULT`` for those that timm would take; None initialises
            at random.

    Raises:
        UserError: timm is not installed, there is no such network or no such weights, building it
            fails, or its weights cannot be had.
    """
    timm = _timm(source)
    build = functools.partial(timm.create_model, _checked_name(timm, source))
    arguments = {"num_classes": num_classes, "in_chans": in_channels, **args}
    if weights is None:
        network: nn.Module = call_builder(source, build, arguments)
        return network
    entry = _weights_entry(timm, source, weights)
    try:
        with _hub_asked_once(entry, arguments):
            network = build(**arguments, pretrained=True, pretrained_cfg=entry.tag)
    except Exception as error:  # of the hub, of the network, of whatever is in the file
        call_builder(source, build, arguments)  # if it is the arguments, this says so
        raise UserError(
            f"{source}: its weights {entry.tag or 'DEFAULT'} cannot be loaded from "
            f"{entry.hf_hub_id or entry.url} ({cause(error)}): fetch them where there is a "
            "network, and set HF_HOME and TORCH_HOME to the folders they were kept in"
        ) from error
    return network


def weights_facts(source: str, weights: str) -> WeightsFacts:
    """Facts about weights, without loading them.

    Args:
        source: ``timm:NAME``.
        weights: tag of the weights, or ``DEFAULT``.

    Raises:
        UserError: timm is not installed, or there is no such network or no such weights.
    """
    entry = _weights_entry(_timm(source), source, weights)
    return WeightsFacts(
        entry.num_classes,
        Normalization(mean=tuple(entry.mean), std=tuple(entry.std)),
        # timm builds some networks for the size of their weights' images.
        {"img_size": list(entry.input_size[-2:])} if entry.fixed_input_size else {},
    )


@contextlib.contextmanager
def _hub_asked_once(entry: Any, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Spare timm's download the hub's retries, which take a minute where there is no network.

    Weights that are kept here are read without asking. For others the hub must answer one request
    before timm downloads them.

    Args:
        entry: timm's record of the weights.
        arguments: of ``create_model``; weights that they place elsewhere are left to timm.

    Raises:
        Exception: the hub does not answer, or has an error.
    """
    if not entry.hf_hub_id or "pretrained_cfg_overlay" in arguments:
        yield
        return
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError

    files = [entry.hf_hub_filename] if entry.hf_hub_filename else _HUB_FILES
    cache = arguments.get("cache_dir")
    kept = [huggingface_hub.try_to_load_from_cache(entry.hf_hub_id, f, cache) for f in files]
    before = constants.HF_HUB_OFFLINE
    if any(isinstance(file, str) for file in kept):
        constants.HF_HUB_OFFLINE = True
    else:
        url = huggingface_hub.hf_hub_url(entry.hf_hub_id, files[0])
        with contextlib.suppress(EntryNotFoundError):  # timm tries another name
            huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_SECONDS)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _timm(source: str) -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UserError(
            f"{source}: timm is not installed: pip install 'dcd-orchestrator[timm]'"
        ) from error
    return timm


def _checked_name(timm: ModuleType, source: str) -> str:
    name, dot, tag = source.removeprefix(TIMM).partition(".")
    if not timm.is_model(name):
        raise UserError(f"{source}: timm has no such network{nearest(name, timm.list_models())}")
    if dot:
        raise UserError(
            f"{source}: the part after the dot is a tag of weights: set source: {TIMM}{name} and "
            f"weights: {tag}"
        )
    return name


def _weights_entry(timm: ModuleType, source: str, weights: str) -> Any:
    """timm's record of weights, a ``PretrainedCfg``."""
    name = _checked_name(timm, source)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if weights == "DEFAULT" and timm.is_model_pretrained(name):
        return timm.get_pretrained_cfg(name)
    if weights not in tags:
        there = f"there are DEFAULT, {', '.join(tags)}" if tags else "it has none"
        raise UserError(f"{source}: no weights {weights!r}; {there}")
    return timm.get_pretrained_cfg(f"{name}.{weights}")

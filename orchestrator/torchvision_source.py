"""torchvision's classifiers by name, with or without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from orchestrator.errors import UserError
from orchestrator.function_source import call_builder
from orchestrator.torchvision_weights import (
    AUXILIARY,
    checked_name,
    fetch_weights,
    is_intact,
    weights_entry,
)

_FIXED_SIZE = {"vit_": "image_size", "maxvit_": "input_size"}
"""Start of the name -> the argument with the only image size that the network takes."""


def build_torchvision(
    source: str, args: Mapping[str, Any], *, num_classes: int, weights: str | None
) -> nn.Module:
    """Build a classifier, without auxiliary outputs unless ``args`` ask for them.

    Args:
        source: ``torchvision:NAME``.
        args: further keyword arguments of its builder.
        num_classes: K; a new classifier takes the place of the weights' one when they differ.
        weights: name in the network's weights enum, downloaded once; None initialises at random.

    Raises:
        UserError: there is no such network or no such weights, or building it fails.
    """
    from torchvision import models

    name = checked_name(source)
    build = models.get_model_builder(name)
    if weights is None:
        arguments: dict[str, Any] = {"num_classes": num_classes}
        if name in AUXILIARY:
            # torchvision warns when the second is left open.
            arguments |= {"aux_logits": False, "init_weights": True}
        network: nn.Module = call_builder(source, build, arguments | dict(args))
        return network
    entry = weights_entry(source, weights)
    file = fetch_weights(source, entry)
    wants_auxiliary = bool(args.get("aux_logits"))
    # The builders refuse to be told that there are none, for they come with the weights.
    arguments = {key: value for key, value in args.items() if key != "aux_logits" or value}
    try:
        network = call_builder(source, build, {"weights": entry, "progress": False, **arguments})
    except UserError as error:
        if is_intact(file):
            raise
        call_builder(source, build, arguments)  # if it is the arguments, this says so
        raise UserError(
            f"{source}: {file} is damaged: delete it, and it is downloaded again"
        ) from error
    if name in AUXILIARY and not wants_auxiliary:
        _drop_auxiliary(network)
    weights_classes = len(entry.meta["categories"])
    if weights_classes != num_classes:
        _replace_classifier(network, weights_classes, num_classes)
    return network


def size_remedy(
    source: str, args: Mapping[str, Any], *, weights: str | None, height: int, width: int
) -> str | None:
    """What to do about images of a size that a network of torchvision's does not take.

    Args:
        source: ``torchvision:NAME``.
        args: keyword arguments of its builder.
        weights: name in the network's weights enum.
        height: of the images.
        width: of the images.

    Returns:
        Part of a sentence; None when their size is right.
    """
    name = checked_name(source)
    smallest = weights_entry(source, weights or "DEFAULT").meta["min_size"]
    argument = next((key for start, key in _FIXED_SIZE.items() if name.startswith(start)), None)
    if argument is None:
        if height >= smallest[0] and width >= smallest[1]:
            return None
        return (
            f"it takes images from {smallest[0]} x {smallest[1]} pixels on: set data.resize: "
            f"{smallest[0]} or more"
        )
    # Without weights, the builders' own default is that of the first ones, 224 for all.
    size = smallest if weights is not None else args.get(argument, 224)
    wanted = (size, size) if isinstance(size, int) else tuple(size)
    if (height, width) == wanted:
        return None
    free = argument == "image_size" and weights is None
    return (
        f"it is built for images of exactly {wanted[0]} x {wanted[1]} pixels: set data.resize: "
        f"{wanted[0]}" + (", or args: {image_size: N}, a multiple of its patches" if free else "")
    )


def _drop_auxiliary(network: nn.Module) -> None:
    """Turn the auxiliary classifiers off."""
    for name, off in (("aux_logits", False), ("aux1", None), ("aux2", None), ("AuxLogits", None)):
        if hasattr(network, name):
            setattr(network, name, off)


def _replace_classifier(network: nn.Module, old_classes: int, num_classes: int) -> None:
    """Put a new layer where torchvision's classifier is: the last layer with that many outputs."""
    path, old = [
        (path, layer)
        for path, layer in network.named_modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == old_classes)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == old_classes)
    ][-1]
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    else:  # SqueezeNet's
        new = nn.Conv2d(old.in_channels, num_classes, kernel_size=1)
    network.set_submodule(path, new)

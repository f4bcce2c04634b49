"""torchvision's classifiers by name, with or without its weights.

torchvision is imported where it is used: that takes as long as all other imports of a command, and
most experiments do without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from orchestrator.error_text import nearest
from orchestrator.errors import UserError
from orchestrator.function_source import call_builder
from orchestrator.spec import Normalization

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

TORCHVISION = "torchvision:"
"""What a source of this module begins with."""

# Those with auxiliary classifiers, which return more than logits in training. With weights, they
# rescale their input too.
_AUXILIARY = ("googlenet", "inception_v3")


class WeightsFacts(NamedTuple):
    """What must be known of weights to use their network, or to rebuild it without them."""

    num_classes: int
    """Classes they were trained on."""
    normalize: Normalization
    """The normalisation they were trained with."""
    args: dict[str, Any]
    """Keyword arguments that torchvision adds to the builder's when it loads them."""


def build_torchvision(
    source: str, args: Mapping[str, Any], *, num_classes: int, weights: str | None
) -> nn.Module:
    """Build a classifier without auxiliary outputs.

    Args:
        source: ``torchvision:NAME``.
        args: further keyword arguments of its builder.
        num_classes: K; a new classifier takes the place of the weights' one when they differ.
        weights: name in the network's weights enum, downloaded once; None initialises at random.

    Raises:
        UserError: there is no such network or no such weights, or building it fails.
    """
    from torchvision import models

    build = models.get_model_builder(_checked_name(source))
    auxiliary = source.removeprefix(TORCHVISION) in _AUXILIARY
    if weights is None:
        arguments: dict[str, Any] = {"num_classes": num_classes}
        if auxiliary:
            # torchvision warns when the second is left open.
            arguments |= {"aux_logits": False, "init_weights": True}
        network: nn.Module = call_builder(source, build, arguments | dict(args))
        return network
    entry = _entry(source, weights)
    network = call_builder(source, build, {"weights": entry, "progress": False, **args})
    if auxiliary:
        _drop_auxiliary(network)
    weights_classes = len(entry.meta["categories"])
    if weights_classes != num_classes:
        _replace_classifier(network, weights_classes, num_classes)
    return network


def weights_facts(source: str, weights: str) -> WeightsFacts:
    """Facts about weights by enum name, without loading them.

    Args:
        source: ``torchvision:NAME``.
        weights: name in the network's weights enum.

    Raises:
        UserError: there is no such network or no such weights.
    """
    entry = _entry(source, weights)
    transforms = entry.transforms()
    name = source.removeprefix(TORCHVISION)
    args: dict[str, Any] = {}
    if name in _AUXILIARY:
        args["transform_input"] = True
    elif name.startswith("vit_"):
        args["image_size"] = entry.meta["min_size"][0]
    return WeightsFacts(
        len(entry.meta["categories"]),
        Normalization(mean=tuple(transforms.mean), std=tuple(transforms.std)),
        args,
    )


def _checked_name(source: str) -> str:
    from torchvision import models

    if not source.startswith(TORCHVISION):
        raise UserError(f"{source}: weights are torchvision's: use them with {TORCHVISION}NAME")
    name = source.removeprefix(TORCHVISION)
    names = models.list_models(module=models)
    if name not in names:
        raise UserError(f"{source}: torchvision has no such classifier{nearest(name, names)}")
    return name


def _entry(source: str, weights: str) -> WeightsEnum:
    from torchvision import models

    choices: type[WeightsEnum] = models.get_model_weights(_checked_name(source))
    names = [*choices.__members__]
    key = weights.removeprefix(f"{choices.__name__}.")
    if key not in names:
        raise UserError(f"{source}: no weights {weights!r}; there are {', '.join(names)}")
    return choices[key]


def _drop_auxiliary(network: nn.Module) -> None:
    """Turn the auxiliary classifiers off, which the builders insist on when they load weights."""
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

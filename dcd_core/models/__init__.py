"""Built-in architectures by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dcd_core._names import nearest
from dcd_core.models.cifar_resnet import CIFAR_RESNETS

__all__ = ["MODELS", "build_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {**CIFAR_RESNETS}
"""Name -> function of the keywords ``num_classes`` and ``in_channels``."""


def build_model(name: str, *, num_classes: int, in_channels: int = 3) -> nn.Module:
    """A freshly initialised classifier.

    Args:
        name: a key of ``MODELS``.
        num_classes: number of logits, K.
        in_channels: channels of the images, C.

    Returns:
        A module that maps images (B, C, H, W) to logits (B, K).

    Raises:
        ValueError: there is no model of that name.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}: did you mean {nearest(name, MODELS)!r}?")
    return MODELS[name](num_classes=num_classes, in_channels=in_channels)

"""Built-in architectures by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dcd_core._names import nearest
from dcd_core.models.cifar_resnet import CIFAR_RESNETS
from dcd_core.models.cifar_resnet50 import ResNet50
from dcd_core.models.mobilenet_v2 import MobileNetV2
from dcd_core.models.shufflenet_v1 import ShuffleNetV1
from dcd_core.models.shufflenet_v2 import ShuffleNetV2
from dcd_core.models.stages import default_hints, stage_ends
from dcd_core.models.vgg import VGGS
from dcd_core.models.wide_resnet import WIDE_RESNETS

__all__ = ["MODELS", "build_model", "default_hints", "stage_ends"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    **CIFAR_RESNETS,
    **WIDE_RESNETS,
    **VGGS,
    "ResNet50": ResNet50,
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
}
"""Name -> function of the keywords ``num_classes`` and ``in_channels``.

The networks of the CRD protocol (Tian et al., ICLR 2020, arXiv:1910.10699) under their names there.
"""


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

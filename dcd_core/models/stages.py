"""Where the stages of an architecture end: the layers whose outputs methods compare by default."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

from dcd_core.models.mobilenet_v2 import MobileNetV2
from dcd_core.models.vgg import VGG

# torchvision's, by name, because to import it takes long: the last blocks at a quarter, an eighth,
# a sixteenth and a thirty-second of the size, as those of its ResNets.
_MOBILE_NET_V2 = ("torchvision.models.mobilenetv2", "MobileNetV2")
_NAMED = re.compile(r"(layer|block|stage)[1-9]")


def stage_ends(model: nn.Module) -> list[str]:
    """Dotted paths of the modules whose outputs end the stages, first to last.

    Those of the CRD protocol for the built-in models. Of any other model, the children that are
    called ``layer1``, ``layer2`` and so on, as in torchvision's ResNets, or ``block`` or ``stage``,
    and of torchvision's MobileNetV2 the last blocks of each size.

    Args:
        model: the classifier.

    Returns:
        The paths; none where nothing is known.
    """
    if isinstance(model, MobileNetV2):
        return ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]
    if isinstance(model, VGG):
        return ["block1", "block2", "block3", "block4"]
    if (type(model).__module__, type(model).__name__) == _MOBILE_NET_V2:
        return ["features.3", "features.6", "features.13", "features.17"]
    return [name for name, _ in model.named_children() if _NAMED.fullmatch(name)]


def default_hints(
    student: nn.Module, teacher: nn.Module, which: Literal["none", "stages", "middle", "last"]
) -> tuple[list[str], list[str]]:
    """The layers of both networks that a method compares unless they are named.

    Stages are paired from the last one backwards, so of the network that has more, the first ones
    are left out.

    Args:
        student: the classifier itself.
        teacher: the classifier itself.
        which: ``Method.hints``. The middle one of three or four stages is the second.

    Returns:
        Paths in the student and in the teacher, as many.

    Raises:
        ValueError: the stages of one are not known.
    """
    if which == "none":
        return [], []
    paths = []
    for name, model in (("student", student), ("teacher", teacher)):
        ends = stage_ends(model)
        if not ends:
            inner = [path for path, _ in model.named_modules() if path.count(".") == 1]
            example = f" to paths of modules, such as {inner[len(inner) // 2]}" if inner else ""
            raise ValueError(
                f"where the stages of the {name}, a {type(model).__name__}, end is not known: "
                f"set hint_layers{example}"
            )
        paths.append(ends)
    common = min(map(len, paths))
    own, wanted = (ends[-common:] for ends in paths)
    if which == "middle":
        middle = (common - 1) // 2
        return own[middle : middle + 1], wanted[middle : middle + 1]
    return (own[-1:], wanted[-1:]) if which == "last" else (own, wanted)

"""Whether a network takes the images it is meant for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.error_text import cause
from orchestrator.errors import UserError
from orchestrator.torchvision_source import size_remedy
from orchestrator.torchvision_weights import TORCHVISION


def check_forward(
    network: nn.Module,
    images: Tensor,
    *,
    source: str,
    args: Mapping[str, Any],
    weights: str | None,
) -> None:
    """Run one batch in eval mode, so that a misfit of images and network is told as one.

    Args:
        network: images -> logits; layers may be made in its first run.
        images: float (B, C, H, W).
        source: that it was built from.
        args: the same.
        weights: the same.

    Raises:
        UserError: it fails on them.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            network(images)
    except Exception as error:  # the network is the user's, and so is what it raises
        convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
        first = next(convolutions, None)
        if first is not None and first.in_channels != images.shape[1]:
            hint = "set data.grey_to_rgb: true" if images.shape[1] == 1 else "use other images"
            raise UserError(
                f"{source} takes images of {first.in_channels} channels and these have "
                f"{images.shape[1]}: {hint}, or a network for them"
            ) from error
        remedy = None
        if source.startswith(TORCHVISION):
            height, width = images.shape[2:]
            remedy = size_remedy(source, args, weights=weights, height=height, width=width)
        raise UserError(
            f"{source} fails on images of shape {tuple(images.shape[1:])} (channels, height, "
            f"width): {f'{remedy} ({cause(error)})' if remedy else cause(error)}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training

"""Channels last, for networks that can do with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def use_channels_last_(model: nn.Module, images_example: Tensor) -> bool:
    """Put a network's weights into channels-last order, unless it could not run on such images.

    The order changes no value, only where it lies. But ``x.view(len(x), -1)`` behind a convolution
    wants the usual order, and fails otherwise.

    Args:
        model: the network; its mode is kept.
        images_example: images as it gets them, (B, C, H, W) on its device.

    Returns:
        Whether it was done. Else the network is as it was.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        model.to(memory_format=torch.channels_last)
        model(images_example.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        model.to(memory_format=torch.contiguous_format)
        return False
    finally:
        for module, training in modes.items():
            module.training = training
    return True

"""What a classifier says to all images of a split."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.data import Split
from orchestrator.evaluation import PixelStatistics
from orchestrator.given_images import network_inputs


@torch.no_grad()
def answer(
    network: nn.Module,
    split: Split,
    *,
    pixels: PixelStatistics,
    crop_size: int | None,
    device: torch.device,
    class_order: tuple[int, ...] | None = None,
) -> Tensor:
    """Logits of a network for a split's images, in fp32.

    Args:
        network: in eval mode, on the device; normalised images (B, C, H, W) -> logits (B, K).
        split: M images.
        pixels: what the network sees.
        crop_size: side of the square from the centre that it sees; None for whole images.
        device: where it runs.
        class_order: (K,) the network's class for each of the data's; None for the same order.

    Returns:
        (M, K) on the CPU, in the order of the data's classes.
    """
    batches = network_inputs(split, pixels=pixels, crop_size=crop_size, device=device)
    logits = torch.cat([network(inputs).float().cpu() for inputs in batches])  # (M, K)
    return logits if class_order is None else logits[:, class_order]

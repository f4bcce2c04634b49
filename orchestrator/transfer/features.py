"""Features of a frozen network, computed once."""

from __future__ import annotations

import torch
from torch.utils.dlpack import from_dlpack

from dcd_core import FeatureModel
from orchestrator.data import Split
from orchestrator.evaluation import PixelStatistics
from orchestrator.given_images import network_inputs
from orchestrator.transfer.probe import Labelled


@torch.no_grad()
def extract_features(
    backbone: FeatureModel,
    split: Split,
    *,
    pixels: PixelStatistics,
    crop_size: int | None,
    device: torch.device,
) -> Labelled:
    """What a network's classifier would get for each image, without augmentation.

    Args:
        backbone: in eval mode, on the device.
        split: M images.
        pixels: what the network sees.
        crop_size: side of the square from the centre that it sees; None for whole images.
        device: where it runs and where the features stay.
    """
    batches = network_inputs(split, pixels=pixels, crop_size=crop_size, device=device)
    features = torch.cat([backbone(inputs).features.float() for inputs in batches])  # (M, D)
    return Labelled(features, from_dlpack(split.labels).to(device))

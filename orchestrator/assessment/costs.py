"""What a classifier costs to run: parameters, operations, time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from orchestrator.computation import forward_flops
from orchestrator.latency import Latency, measure_latency
from orchestrator.sources import num_parameters
from orchestrator.student_model import RawImageClassifier

BATCH_SIZES = (1, 64)
"""Of the latencies."""


class Costs(NamedTuple):
    """Of one network in fp32, on one machine."""

    parameters: int
    macs: int
    """Multiply-accumulate operations for one image, of convolutions and matrix products."""
    latencies: tuple[Latency, ...]
    """From raw images on the device to logits, normalisation included, for each of the batches."""
    device: str
    threads: int
    """Of the CPU."""


def measure_costs(
    classifier: RawImageClassifier, image_shape: tuple[int, int, int], *, device: torch.device
) -> Costs:
    """Count and time a classifier.

    Args:
        classifier: in eval mode, on the device.
        image_shape: (C, H, W).
        device: where it runs.
    """
    return Costs(
        parameters=num_parameters(classifier),
        macs=count_macs(classifier.network, image_shape, device=device),
        latencies=tuple(
            measure_latency(classifier, image_shape, batch_size=batch_size, device=device)
            for batch_size in BATCH_SIZES
        ),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
    )


def count_macs(
    network: nn.Module, image_shape: tuple[int, int, int], *, device: torch.device
) -> int:
    """Multiply-accumulate operations of a network for one image, (C, H, W)."""
    flops = forward_flops(network, torch.zeros(1, *image_shape, device=device))
    return round(flops / 2)

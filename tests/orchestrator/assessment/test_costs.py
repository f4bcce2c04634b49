"""What a classifier costs, against counts by hand and a clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from orchestrator.assessment.costs import count_macs, measure_costs
from orchestrator.latency import measure_latency
from orchestrator.student_model import RawImageClassifier

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)


def network() -> nn.Module:
    """A convolution, and a linear layer on its means."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


def test_operations_of_a_convolution_and_a_linear_layer_are_those_counted_by_hand() -> None:
    convolution = 8 * 8 * 8 * 3 * 3 * 3  # outputs, each of 3 channels times 3 x 3
    assert count_macs(network(), SHAPE, device=CPU) == convolution + 8 * 10
    strided = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert count_macs(strided, (4, 8, 8), device=CPU) == 6 * 4 * 4 * 2 * 3 * 3


def test_costs_are_of_the_network_with_its_normalisation_inside() -> None:
    classifier = RawImageClassifier(network(), mean=(0.5,) * 3, std=(0.2,) * 3).eval()
    costs = measure_costs(classifier, SHAPE, device=CPU)
    assert costs.parameters == (3 * 3 * 3 * 8 + 8) + (8 * 10 + 10)
    assert costs.macs == 8 * 8 * 8 * 27 + 80
    assert [latency.batch_size for latency in costs.latencies] == [1, 64]
    assert (costs.device, costs.threads) == ("cpu", torch.get_num_threads())


class Slow(nn.Module):
    """Takes 2 ms for each image by a clock of its own, and every tenth time three times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.clock_s = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1)."""
        assert images.dtype == torch.uint8
        self.shapes.append(tuple(images.shape))
        self.clock_s += 0.002 * len(images) * (3 if len(self.shapes) % 10 == 0 else 1)
        return torch.zeros(len(images), 1)


def test_the_median_is_what_a_batch_takes_and_the_95th_percentile_what_it_takes_at_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow()
    clock = SimpleNamespace(perf_counter=lambda: slow.clock_s)
    monkeypatch.setattr("orchestrator.latency.time", clock)
    found = measure_latency(slow, SHAPE, batch_size=2, device=CPU)
    assert set(slow.shapes) == {(2, *SHAPE)}
    assert (found.batch_size, found.warm_up, found.runs) == (2, 10, 50)
    assert len(slow.shapes) == 60
    assert found.median_ms == pytest.approx(4)
    assert found.p95_ms == pytest.approx(12)

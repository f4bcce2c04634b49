"""AT, FitNet and VID against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from method_examples import build, learn, says
from torch import nn

from dcd_core.objectives import NetworkSizes
from dcd_core.objectives.fitnet import FitNet
from dcd_core.objectives.vid import VID


def _sizes(*hints: tuple[int, int, int]) -> NetworkSizes:
    return NetworkSizes(2, hints)


def test_at_compares_unit_maps_of_the_mean_square_over_channels() -> None:
    """(1, 0) against (1, 1) / sqrt 2, whatever the number of channels and the scale."""
    student = says(1, hints=[[[[[3.0, 0]], [[-4, 0]]]]])
    teacher = says(1, hints=[[[[[7.0, -7]]]]])
    method = build("at", student=_sizes((2, 1, 2)), teacher=_sizes((1, 1, 2)))
    by_hand = ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 2
    assert learn(method, student, teacher).item() == pytest.approx(by_hand)


def test_at_sums_over_layers_and_averages_the_larger_map() -> None:
    """1x4 pixels, averaged in twos, are (2, 0): unlike the 1x2 pixels (1, 1); the second pair of
    layers is alike."""
    student = says(1, hints=[[[[[1.0, 3, 0, 0]]]], [[[[5.0]]]]])
    teacher = says(1, hints=[[[[[1.0, 1]]]], [[[[2.0]]]]])
    method = build("at", student=_sizes((1, 1, 4), (1, 1, 1)), teacher=_sizes((1, 1, 2), (1, 1, 1)))
    by_hand = ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 2
    assert learn(method, student, teacher).item() == pytest.approx(by_hand)


@torch.no_grad()
def _regress(method: object, *, weight: float, bias: float) -> FitNet:
    assert isinstance(method, FitNet)
    (regressor,) = method.regressors
    assert isinstance(regressor, nn.Conv2d) and regressor.bias is not None
    regressor.weight.fill_(weight)
    regressor.bias.fill_(bias)
    return method


def test_fitnet_is_the_mean_squared_error_of_a_learned_regressor() -> None:
    """2 x + 1 of (1, 3) is (3, 7), against (3, 5)."""
    student, teacher = says(1, hints=[[[[[1.0, 3]]]]]), says(1, hints=[[[[[3.0, 5]]]]])
    sizes = _sizes((1, 1, 2))
    method = _regress(build("fitnet", student=sizes, teacher=sizes), weight=2, bias=1)
    assert learn(method, student, teacher).item() == pytest.approx((0 + 4) / 2)


def test_fitnet_is_zero_where_the_regressor_gives_the_hint() -> None:
    student, teacher = says(1, hints=[[[[[1.0, 3]]]]]), says(1, hints=[[[[[-2.0, -6]]]]])
    sizes = _sizes((1, 1, 2))
    method = _regress(build("fitnet", student=sizes, teacher=sizes), weight=-2, bias=0)
    assert learn(method, student, teacher).item() == 0


def test_fitnet_averages_whichever_map_is_larger() -> None:
    sizes = (_sizes((1, 1, 1)), _sizes((1, 1, 2)))
    maps = [[[[[2.0]]]]], [[[[[3.0, 5]]]]]
    for own, hint in ((0, 1), (1, 0)):
        method = build("fitnet", student=sizes[own], teacher=sizes[hint])
        _regress(method, weight=1, bias=0)
        loss = learn(method, says(1, hints=maps[own]), says(1, hints=maps[hint]))
        assert loss.item() == pytest.approx((2 - 4) ** 2)


def _vid(init_variance: float) -> VID:
    sizes = _sizes((1, 1, 2))
    method = build("vid", student=sizes, teacher=sizes, init_variance=init_variance)
    assert isinstance(method, VID)
    with torch.no_grad():
        for parameter in method.predictors.parameters():
            parameter.fill_(1.0)  # gives what it gets, where that is positive
    return method


def test_vid_is_the_negative_log_likelihood_of_a_gaussian() -> None:
    student, teacher = says(1, hints=[[[[[1.0, 3]]]]]), says(1, hints=[[[[[2.0, 3]]]]])
    loss = learn(_vid(2.0), student, teacher)
    assert loss.item() == pytest.approx(((1 / 2 + math.log(2)) / 2 + math.log(2) / 2) / 2, abs=1e-7)
    normal = torch.distributions.Normal(0.0, math.sqrt(2))
    constant = math.log(2 * math.pi) / 2
    mean = -normal.log_prob(torch.tensor([1.0, 0.0])).mean().item() - constant
    assert loss.item() == pytest.approx(mean, abs=1e-6)


def test_vid_is_smallest_where_the_variance_is_the_mean_squared_error() -> None:
    student, teacher = says(1, hints=[[[[[1.0, 3]]]]]), says(1, hints=[[[[[2.0, 3]]]]])
    gradients = []
    for variance in (0.4, 0.5, 0.6):
        method = _vid(variance)
        learn(method, student, teacher).backward()
        (raw,) = method.raw_variances
        assert raw.grad is not None
        gradients.append(raw.grad.item())
    assert gradients[0] < 0 < gradients[2]
    assert gradients[1] == pytest.approx(0, abs=1e-6)


def test_at_sees_small_activations_as_it_sees_large_ones() -> None:
    torch.manual_seed(0)
    own, wanted = torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4)
    method = build("at", student=_sizes((3, 4, 4)), teacher=_sizes((5, 4, 4)))
    large, small = (
        learn(
            method,
            says(2, hints=[(own * scale).tolist()]),
            says(2, hints=[(wanted * scale).tolist()]),
        )
        for scale in (1.0, 1e-4)
    )
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("init_variance", [1e-4, 5.0, 1000.0])
def test_vid_starts_at_the_variance_that_is_asked_for(init_variance: float) -> None:
    (raw,) = _vid(init_variance).raw_variances
    variance = nn.functional.softplus(raw.double()) + 1e-5
    torch.testing.assert_close(
        variance, torch.full_like(variance, init_variance), rtol=1e-4, atol=0
    )

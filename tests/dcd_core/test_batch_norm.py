from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_pool import RankPool
from torch import Tensor, nn

from dcd_core import FeatureModel, build_model, synchronise_batch_norm

LAYERS = {
    "1d": nn.BatchNorm1d(3),
    "2d": nn.BatchNorm2d(3),
    "3d": nn.BatchNorm3d(3),
    "not affine": nn.BatchNorm2d(3, affine=False),
    "average": nn.BatchNorm2d(3, momentum=None),
    "no running statistics": nn.BatchNorm2d(3, track_running_stats=False),
    "other eps and momentum": nn.BatchNorm2d(3, eps=0.1, momentum=0.7),
}
SIZES = {"1d": (), "3d": (2, 1, 3)}
COUNTS = [[3, 3], [4, 1], [5, 0], [2, 2, 2, 1], [2, 0, 3, 0]]


def _layer(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    layer = copy.deepcopy(LAYERS[name]).to(dtype)
    for seed, parameter in enumerate(layer.parameters()):
        draw = torch.Generator().manual_seed(seed)
        parameter.data = torch.randn(3, generator=draw, dtype=torch.float64).to(dtype)
    return layer


def _rows(name: str, num_rows: int, step: int) -> tuple[Tensor, Tensor]:
    """Inputs and the gradients of the outputs, (num_rows, 3, ...)."""
    draw = torch.Generator().manual_seed(10 + step)
    shape = (num_rows, 3, *SIZES.get(name, (4, 2)))
    x = torch.randn(shape, generator=draw, dtype=torch.float64)
    return 2 * x + 3, torch.randn(shape, generator=draw, dtype=torch.float64)


def _two_steps(layer: nn.Module, name: str, num_rows: int, own: slice) -> dict[str, Any]:
    outputs, grads = [], []
    for step in range(2):
        x, grad = (part[own] for part in _rows(name, num_rows, step))
        x.requires_grad_()
        y = layer(x)
        y.backward(grad)
        outputs.append(y.detach())
        grads.append(x.grad)
    layer.eval()
    return {
        "outputs": outputs,
        "grads": grads,
        "weights": {key: p.grad for key, p in layer.named_parameters()},
        "state": layer.state_dict(),
        "eval": layer(_rows(name, num_rows, 0)[0]).detach(),
    }


def _on_ranks(
    rank: int, group: dist.ProcessGroup | None, name: str, counts: list[int]
) -> dict[str, Any]:
    layer = synchronise_batch_norm(_layer(name), group)
    first = sum(counts[:rank])
    return _two_steps(layer, name, sum(counts), slice(first, first + counts[rank]))


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_statistics_over_ranks_equal_those_of_the_whole_batch(
    ranks: RankPool, name: str, counts: list[int]
) -> None:
    whole = _two_steps(_layer(name), name, sum(counts), slice(None))
    parts = ranks.run(len(counts), _on_ranks, name, counts)
    for step in range(2):
        for key in ("outputs", "grads"):
            together = torch.cat([part[key][step] for part in parts])
            torch.testing.assert_close(together, whole[key][step], rtol=1e-11, atol=1e-12)
    for key, grad in whole["weights"].items():
        summed = sum(part["weights"][key] for part in parts)
        torch.testing.assert_close(summed, grad, rtol=1e-11, atol=1e-12)
    for part in parts:
        assert part["state"].keys() == whole["state"].keys()
        torch.testing.assert_close(dict(part["state"]), dict(whole["state"]), rtol=1e-12, atol=0)
        torch.testing.assert_close(part["eval"], whole["eval"], rtol=1e-11, atol=1e-12)


def _float32_far_from_zero(
    rank: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor | None]:
    x = 1e4 + _rows("2d", 8, 0)[0][4 * rank : 4 * rank + 4]
    layer = synchronise_batch_norm(nn.BatchNorm2d(3), group)
    return layer(x.float()).detach(), layer.running_var


def test_float32_statistics_far_from_zero_keep_their_digits(ranks: RankPool) -> None:
    x = (1e4 + _rows("2d", 8, 0)[0]).float().double()  # what float32 can hold of it
    exact = nn.BatchNorm2d(3).double()
    expected = exact(x)
    parts = ranks.run(2, _float32_far_from_zero)
    # A mean of 1e4 has a spacing of 1e-3 in float32, on values that vary by 2.
    torch.testing.assert_close(
        torch.cat([p[0] for p in parts]).double(), expected, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(parts[0][1].double(), exact.running_var, atol=0, rtol=1e-4)


def _half(
    rank: int, group: dist.ProcessGroup | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Any]:
    x, grad = (part[3 * rank : 3 * rank + 3].to(dtype) for part in _rows("2d", 6, 0))
    x.requires_grad_()
    layer = synchronise_batch_norm(_layer("2d", torch.float32), group)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    y.backward(grad)
    assert x.grad is not None
    return y.detach(), x.grad, layer.running_mean


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_have_float32_statistics(ranks: RankPool, dtype: torch.dtype) -> None:
    x, grad = (part.to(dtype).float() for part in _rows("2d", 6, 0))
    x.requires_grad_()
    exact = _layer("2d", torch.float32)
    expected = exact(x)
    expected.backward(grad)
    assert x.grad is not None
    parts = ranks.run(2, _half, dtype)
    together = torch.cat([part[0] for part in parts])
    input_grad = torch.cat([part[1] for part in parts])
    assert together.dtype == input_grad.dtype == dtype
    torch.testing.assert_close(together, expected.to(dtype))
    torch.testing.assert_close(input_grad, x.grad.to(dtype))
    torch.testing.assert_close(parts[0][2], exact.running_mean, rtol=1e-6, atol=1e-7)


def _one_value(rank: int, group: dist.ProcessGroup | None) -> str:
    layer = synchronise_batch_norm(nn.BatchNorm1d(3), group)
    try:
        layer(torch.zeros(1 - rank, 3))
    except ValueError as error:
        return str(error)
    return "accepted"


def test_a_single_value_per_channel_over_all_ranks_is_refused_on_each(ranks: RankPool) -> None:
    for message in ranks.run(2, _one_value):
        assert "more than 1 value per channel" in message


def test_names_state_hooks_and_identity_stay_when_a_model_is_synchronised() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    plain = build_model("resnet8", num_classes=4)
    model = FeatureModel(copy.deepcopy(plain), images_example=images, feature_layer="layer3.0.bn2")
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    assert synchronise_batch_norm(model) is model
    torch.testing.assert_close(dict(model.model.state_dict()), before, rtol=0, atol=0)
    assert not any(type(m) is nn.BatchNorm2d for m in model.modules())
    assert model(images).features.shape == (2, 64)
    # Alone, a process holds the whole batch.
    torch.testing.assert_close(model(images).logits, plain(images), rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(images).logits, model(images).logits, rtol=0, atol=0)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcd_core import MODELS, FeatureModel, build_model
from dcd_core.models.stages import stage_ends

FINGERPRINTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "model_fingerprints.json").read_text()
)["models"]
ONE_OF_EACH = [
    *("resnet8", "wrn_16_1", "wrn_16_2", "vgg8", "ResNet50", "MobileNetV2"),
    *("ShuffleV1", "ShuffleV2"),
]


def _fingerprint_state(model: nn.Module) -> dict[str, Tensor]:
    """Seeded weights, independent of any initialisation; see "recipe" in the fixture."""
    state = model.state_dict()
    norms = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for i, key in enumerate(sorted(state)):
        shape = tuple(state[key].shape)
        if not state[key].is_floating_point():
            state[key] = torch.zeros(shape, dtype=state[key].dtype)
            continue
        value = np.random.RandomState(1000 + i).standard_normal(int(np.prod(shape)))
        module, _, kind = key.rpartition(".")
        if kind == "running_var":
            value = 1 + 0.5 * np.abs(value)
        elif module in norms and kind == "weight":
            value = 1 + 0.1 * value
        elif len(shape) >= 2:
            value = value * np.sqrt(2 / np.prod(shape[1:]))
        else:
            value = 0.1 * value
        state[key] = torch.from_numpy(value.reshape(shape))
    return state


def _without_weights(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, num_classes=100)


def test_the_built_in_models_are_those_with_a_fingerprint() -> None:
    assert set(FINGERPRINTS) == set(MODELS)


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_names_and_shapes_of_parameters_are_the_published_ones(name: str) -> None:
    expected = FINGERPRINTS[name]
    model = _without_weights(name)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == expected["keys"]
    assert sum(p.numel() for p in model.parameters()) == expected["params"]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_operations_and_stages_are_those_of_the_published_architecture(name: str) -> None:
    expected = FINGERPRINTS[name]
    model = _without_weights(name).eval()
    shapes: list[list[int]] = []
    for path in stage_ends(model):
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output: shapes.append(list(output.shape[1:]))
        )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() == 2 * expected["macs_32"]
    assert shapes == expected["stage_shapes"]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_outputs_are_those_of_the_published_architecture(name: str) -> None:
    expected = FINGERPRINTS[name]
    images = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 32, 32)))
    model = _without_weights(name)
    model.load_state_dict(_fingerprint_state(model), assign=True)
    wrapped = FeatureModel(model, images_example=images).eval()
    with torch.no_grad():
        logits, features = wrapped(images)
    assert wrapped.feature_dim == expected["feature_dim"]
    assert logits[0, :5].tolist() == pytest.approx(expected["logits0_first5"], rel=1e-8)
    assert logits[1, :5].tolist() == pytest.approx(expected["logits1_first5"], rel=1e-8)
    assert features.sum().item() == pytest.approx(expected["feature_sum"], rel=1e-8)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize(("size", "channels"), [((8, 8), 1), ((33, 47), 3), ((64, 64), 4)])
def test_other_image_sizes_and_channels_are_accepted(
    name: str, size: tuple[int, int], channels: int
) -> None:
    model = build_model(name, num_classes=7, in_channels=channels)
    with torch.no_grad():
        assert model(torch.randn(2, channels, *size)).shape == (2, 7)
        assert model(torch.randn(0, channels, *size)).shape == (0, 7)


@pytest.mark.parametrize("name", FINGERPRINTS)
@pytest.mark.parametrize(("size", "num_classes"), [(64, 2), (96, 200)])
def test_larger_images_and_other_classes_leave_the_feature_as_wide_as_it_is(
    name: str, size: int, num_classes: int
) -> None:
    images = torch.randn(1, 3, size, size)
    wrapped = FeatureModel(build_model(name, num_classes=num_classes), images_example=images)
    assert wrapped.feature_dim == FINGERPRINTS[name]["feature_dim"]
    assert wrapped.num_classes == num_classes


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = build_model(name, num_classes=7)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("height", "pooled"), [(32, 4), (64, 4), (72, 9), (96, 12)])
def test_vgg_pools_a_fourth_time_images_of_64_pixels_as_published(height: int, pooled: int) -> None:
    model = build_model("vgg8", num_classes=7).eval()
    heights: list[int] = []
    model.get_submodule("block4").register_forward_hook(
        lambda module, args, output: heights.append(output.shape[2])
    )
    model(torch.randn(1, 3, height, height))
    assert heights == [pooled]


@pytest.mark.parametrize("name", ["resnet32x4", "wrn_40_2", "vgg8", "ResNet50", "MobileNetV2"])
def test_convolutions_start_as_in_the_published_protocol(name: str) -> None:
    torch.manual_seed(0)
    for module in build_model(name, num_classes=10).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            # Five standard errors of a deviation that is estimated from so many weights.
            tolerance = 5 / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=tolerance)
            assert module.bias is None or (module.bias == 0).all()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize(
    ("name", "classifier"), [("vgg8", "classifier"), ("MobileNetV2", "classifier.0")]
)
def test_some_classifiers_start_small(name: str, classifier: str) -> None:
    torch.manual_seed(0)
    linear = build_model(name, num_classes=100).get_submodule(classifier)
    assert isinstance(linear, nn.Linear)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (linear.bias == 0).all()


def test_a_wide_networks_classifier_starts_with_its_bias_at_zero() -> None:
    assert (build_model("wrn_16_1", num_classes=100).get_parameter("fc.bias") == 0).all()


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="'resnet32x5': did you mean 'resnet32x4'"):
        build_model("resnet32x5", num_classes=10)


@pytest.mark.parametrize(
    ("name", "meant"), [("resnet50", "ResNet50"), ("mobilenetv2", "MobileNetV2")]
)
def test_a_name_in_another_case_is_recognised_in_the_refusal(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        build_model(name, num_classes=10)

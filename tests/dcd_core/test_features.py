from __future__ import annotations

import copy
import gc
import pickle
import shutil
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from tiny import TinyNet
from torch import Tensor, nn
from torch.nn import functional as F

from dcd_core import FeatureModel, build_model, find_classifier

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SMALL = IMAGES[:, :, :16, :16]

# Name -> (path of the classifier, feature dimension).
TORCHVISION: dict[str, tuple[str, int]] = {
    "resnet18": ("fc", 512),
    "mobilenet_v2": ("classifier.1", 1280),
    "shufflenet_v2_x0_5": ("fc", 1024),
    "densenet121": ("classifier", 1024),
    "efficientnet_b0": ("classifier.1", 1280),
    "regnet_y_400mf": ("fc", 440),
    "convnext_tiny": ("classifier.2", 768),
    "swin_t": ("head", 768),
}


def _torchvision(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10)
    return model


@pytest.mark.parametrize("name", TORCHVISION)
def test_features_of_torchvision_models_are_the_input_of_their_classifier(name: str) -> None:
    path, feature_dim = TORCHVISION[name]
    model = _torchvision(name).eval()
    assert find_classifier(model, IMAGES) == path
    wrapped = FeatureModel(model, images_example=IMAGES)
    assert (wrapped.feature_dim, wrapped.num_classes) == (feature_dim, 10)
    with torch.no_grad():
        logits, features = wrapped(IMAGES)
        assert torch.equal(logits, model(IMAGES))
        # The classifier maps the features to the logits: an independent check of both.
        assert torch.equal(model.get_submodule(path)(features), logits)


def test_features_of_a_vision_transformer_are_its_class_token() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
    ).eval()
    nn.init.normal_(model.heads.head.weight)  # zeros at first
    wrapped = FeatureModel(model, images_example=IMAGES)
    assert wrapped.feature_dim == 8
    with torch.no_grad():
        logits, features = wrapped(IMAGES)
        assert torch.equal(model.heads(features), logits)


class _ConvolutionalHead(nn.Module):
    def __init__(self, *, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3)
        self.squeeze = nn.Conv2d(6, 4, 1)
        self.head = nn.Conv2d(4, 5, 1)
        self.activation = activation

    def forward(self, images: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.squeeze(self.body(images).relu()), 1)
        logits = self.head(pooled).flatten(1)
        output: Tensor = logits if self.activation is None else self.activation(logits)
        return output


def test_a_1x1_convolution_can_be_the_classifier() -> None:
    model = _ConvolutionalHead()
    assert find_classifier(model, SMALL) == "head"
    wrapped = FeatureModel(model, images_example=SMALL)
    expected = model.squeeze(model.body(SMALL).relu()).mean((2, 3))
    torch.testing.assert_close(wrapped(SMALL).features, expected)


class _TwoHeads(nn.Module):
    """The first Linear gives the same shape as the last, and other values."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 5)
        self.first = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(images.mean((2, 3))).tanh())
        return logits


def test_the_layer_is_found_by_its_values_not_by_shape_or_place() -> None:
    assert find_classifier(_TwoHeads(), SMALL) == "last"


@pytest.mark.parametrize(
    "activation", [nn.LogSoftmax(dim=1), nn.ELU(inplace=True)], ids=["log-softmax", "in-place"]
)
def test_without_a_classifier_the_message_asks_for_a_feature_layer(activation: nn.Module) -> None:
    model = _ConvolutionalHead(activation=activation)
    with pytest.raises(ValueError, match="set feature_layer to the path"):
        FeatureModel(model, images_example=SMALL)
    wrapped = FeatureModel(model, images_example=SMALL, feature_layer="squeeze")
    expected = model.squeeze(model.body(SMALL).relu()).mean((2, 3))
    torch.testing.assert_close(wrapped(SMALL).features, expected)
    assert wrapped.feature_layer == "squeeze"


class _AveragedScores(nn.Module):
    """A map of scores for each class, which is averaged in the end."""

    def __init__(self, *, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 5, 1)  # as many channels as classes
        self.head = nn.Conv2d(5, 5, 1)
        self.activation = activation

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.activation(self.head(self.body(images)))
        return F.adaptive_avg_pool2d(scores, 1).flatten(1)


@pytest.mark.parametrize(
    "activation", [nn.Identity(), nn.ReLU(inplace=True)], ids=["plain", "rectified"]
)
def test_a_1x1_convolution_whose_scores_are_averaged_is_the_classifier(
    activation: nn.Module,
) -> None:
    torch.manual_seed(0)
    model = _AveragedScores(activation=activation)
    assert find_classifier(model, SMALL) == "head"
    wrapped = FeatureModel(model, images_example=SMALL)
    torch.testing.assert_close(wrapped(SMALL).features, model.body(SMALL).mean((2, 3)))


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_features_of_squeezenet_are_what_its_last_convolution_sees(name: str) -> None:
    model: Any = _torchvision(name).eval()
    assert find_classifier(model, IMAGES) == "classifier.1"
    wrapped = FeatureModel(model, images_example=IMAGES)
    assert (wrapped.feature_dim, wrapped.num_classes) == (512, 10)
    torch.testing.assert_close(
        wrapped(IMAGES).features, model.features(IMAGES).mean((2, 3)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_features_are_taken_before_the_dropout_in_front_of_the_classifier(inplace: bool) -> None:
    torch.manual_seed(0)
    body, head = nn.Linear(768, 6), nn.Linear(6, 4)
    model = nn.Sequential(nn.Flatten(), body, nn.Dropout(0.5, inplace=inplace), head)
    wrapped = FeatureModel(model, images_example=SMALL).train()
    logits, features = wrapped(SMALL)
    torch.testing.assert_close(features, body(SMALL.flatten(1)), rtol=0, atol=0)
    assert (logits - head(features)).abs().max() > 0.01  # the logits have their dropout


@pytest.mark.parametrize(
    "between", [nn.ReLU(inplace=True), nn.LayerNorm(6)], ids=["in-place", "normalisation"]
)
def test_a_dropout_that_is_not_directly_before_the_classifier_is_part_of_the_feature(
    between: nn.Module,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(768, 6), nn.Dropout(0.5), between, nn.Linear(6, 4)
    )
    wrapped = FeatureModel(model, images_example=SMALL).train()
    logits, features = wrapped(SMALL)
    torch.testing.assert_close(model[4](features), logits, rtol=0, atol=0)


def test_a_dropout_that_is_used_elsewhere_too_is_part_of_the_feature() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.fc, self.dropout = nn.Linear(16, 8), nn.Linear(8, 4), nn.Dropout(0.5)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.dropout(self.tokens(images.mean(1)))  # (B, 16, 8)
            logits: Tensor = self.fc(self.dropout(tokens.mean(1)))
            return logits

    torch.manual_seed(0)
    model = Shared()
    logits, features = FeatureModel(model, images_example=SMALL).train()(SMALL)
    torch.testing.assert_close(model.fc(features), logits, rtol=0, atol=0)


def test_the_output_of_a_feature_layer_is_taken_before_in_place_activations() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(768, 6)
    model = nn.Sequential(nn.Flatten(), linear, nn.ReLU(inplace=True), nn.Linear(6, 4))
    wrapped = FeatureModel(model, images_example=SMALL, feature_layer="1")
    expected = F.linear(SMALL.flatten(1), linear.weight, linear.bias)
    assert (expected < 0).any()
    torch.testing.assert_close(wrapped(SMALL).features, expected)


# Refusals


def test_an_unknown_feature_layer_is_refused_with_the_nearest_name() -> None:
    model = build_model("resnet8", num_classes=4)
    with pytest.raises(ValueError, match=r"'layr3' is not a module .* did you mean 'layer3'"):
        FeatureModel(model, images_example=SMALL, feature_layer="layr3")


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(16, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.tokens(images.mean(1)).mean(1))
        return logits


def test_a_feature_of_three_dimensions_is_refused_and_the_model_left_as_it_came() -> None:
    model = _Tokens()
    with pytest.raises(ValueError, match=r"gives shape \(2, 16, 8\)"):
        FeatureModel(model, images_example=SMALL, feature_layer="tokens")
    assert model(SMALL).shape == (2, 4)


class _Returns(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.fc(images.mean((2, 3))))


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda x: (x, x), "tuple"),
        (lambda x: {"logits": x}, "dict"),
        (lambda x: x[:, :, None, None], r"shape \(2, 4, 1, 1\)"),
    ],
    ids=["tuple", "dict", "map"],
)
def test_a_model_that_does_not_return_logits_is_refused(
    wrap: Callable[[Tensor], Any], found: str
) -> None:
    with pytest.raises(ValueError, match=f"{found}: a logits tensor .*is expected"):
        FeatureModel(_Returns(wrap), images_example=SMALL)


def test_an_example_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        FeatureModel(TinyNet(), images_example=SMALL[:0])


# The model stays as it is


def test_probing_leaves_modes_buffers_and_gradients_alone() -> None:
    model: Any = build_model("resnet8", num_classes=4)
    model.layer2.eval()
    modes = {name: m.training for name, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    FeatureModel(model, images_example=SMALL)
    assert {name: m.training for name, m in model.named_modules()} == modes
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_parameter_names_stay_under_the_name_model() -> None:
    model = build_model("resnet8", num_classes=4)
    names = list(model.state_dict())
    wrapped = FeatureModel(model, images_example=SMALL)
    assert list(model.state_dict()) == names
    assert list(wrapped.state_dict()) == [f"model.{name}" for name in names]


def test_the_example_is_moved_to_the_dtype_of_the_model() -> None:
    wrapped = FeatureModel(TinyNet().double(), images_example=SMALL)
    assert wrapped(SMALL.double()).features.dtype == torch.float64


def test_the_captured_feature_does_not_outlive_its_caller() -> None:
    wrapped = FeatureModel(TinyNet(), images_example=SMALL)
    output = wrapped(SMALL)
    reference = weakref.ref(output.features)
    del output
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("feature_layer", [None, "conv"])
def test_a_copy_captures_its_own_features(
    duplicate: Callable[[FeatureModel], FeatureModel], feature_layer: str | None
) -> None:
    wrapped = FeatureModel(TinyNet(), images_example=SMALL, feature_layer=feature_layer)
    copied: Any = duplicate(wrapped)
    torch.testing.assert_close(copied(SMALL), wrapped(SMALL), rtol=0, atol=0)
    nn.init.zeros_(copied.model.conv.weight)
    nn.init.zeros_(copied.model.conv.bias)
    assert copied(SMALL).features.abs().max() == 0
    assert wrapped(SMALL).features.abs().max() > 0


@pytest.mark.parametrize("feature_layer", [None, "layer3", "layer3.0.bn2"])
def test_a_batch_without_rows_gives_outputs_without_rows(feature_layer: str | None) -> None:
    wrapped = FeatureModel(
        build_model("resnet8", num_classes=4), images_example=SMALL, feature_layer=feature_layer
    )
    logits, features = wrapped.eval()(SMALL[:0])
    assert (logits.shape, features.shape) == ((0, 4), (0, 64))


def test_gradients_flow_through_features_and_logits() -> None:
    wrapped = FeatureModel(TinyNet().double(), images_example=SMALL)
    images = SMALL[:1, :, :3, :3].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(wrapped(x)), images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_features_close_to_those_in_full_precision(dtype: torch.dtype) -> None:
    wrapped = FeatureModel(TinyNet(), images_example=SMALL)
    with torch.autocast("cpu", dtype=dtype):
        logits, features = wrapped(SMALL)
    expected = wrapped(SMALL)
    assert logits.dtype == dtype
    torch.testing.assert_close(features.float(), expected.features, rtol=0.05, atol=0.01)


# torch.compile


def _same_when_compiled(wrapped: FeatureModel, backend: str) -> None:
    expected = wrapped(SMALL)
    expected_grads = torch.autograd.grad(
        expected.features.square().sum() + expected.logits.sum(), list(wrapped.parameters())
    )
    compiled = torch.compile(wrapped, backend=backend, fullgraph=True)
    for _ in range(2):  # the second call runs what the first compiled
        output = compiled(SMALL)
        torch.testing.assert_close(tuple(output), tuple(expected), rtol=1e-4, atol=1e-5)
        grads = torch.autograd.grad(
            output.features.square().sum() + output.logits.sum(), list(wrapped.parameters())
        )
        torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-5)
    assert compiled(SMALL[:0]).features.shape == (0, wrapped.feature_dim)
    doubled = compiled(2 * SMALL).features
    torch.testing.assert_close(doubled, wrapped(2 * SMALL).features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("feature_layer", [None, "conv"])
def test_a_compiled_model_is_one_graph_with_the_same_results(
    backend: str, feature_layer: str | None
) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    wrapped = FeatureModel(TinyNet(), images_example=SMALL, feature_layer=feature_layer)
    _same_when_compiled(wrapped, backend)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_the_same_results() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    _same_when_compiled(FeatureModel(TinyNet(), images_example=SMALL), "inductor")

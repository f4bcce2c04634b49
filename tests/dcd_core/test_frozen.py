"""A frozen teacher that was made fast answers as it did."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from dcd_core import (
    Distiller,
    FeatureModel,
    FrozenTeacher,
    build_model,
    fold_batch_norm_,
    use_channels_last_,
)

SMALL = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LARGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """With statistics and affine parameters as training leaves them, and not as it finds them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    return model.eval()


def num_norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / a.abs().max())


def test_a_folded_layer_is_the_hand_calculation() -> None:
    # (2 x + 1 - 3) / sqrt(3 + 1) * 4 + 5 = 4 x + 1
    layer, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=1.0)
    with torch.no_grad():
        for tensor, value in (
            (layer.weight, 2.0), (layer.bias, 1.0), (norm.running_mean, 3.0),
            (norm.running_var, 3.0), (norm.weight, 4.0), (norm.bias, 5.0),
        ):  # fmt: skip
            assert tensor is not None
            tensor.fill_(value)
    model = nn.Sequential(layer, norm).eval()
    assert fold_batch_norm_(model) == 1
    assert (layer.weight.item(), layer.bias.item()) == (4.0, 1.0) if layer.bias is not None else ()
    assert isinstance(model[1], nn.Identity)


@pytest.mark.parametrize(
    ("build", "images", "folded"),
    [
        (lambda: build_model("resnet8", num_classes=10), SMALL, "all"),
        (lambda: build_model("resnet32x4", num_classes=10), SMALL, "all"),
        (lambda: build_model("vgg8", num_classes=10), SMALL, "all"),
        (lambda: build_model("vgg8", num_classes=10), LARGE, "all"),
        (lambda: build_model("ResNet50", num_classes=10), SMALL, "all"),
        (lambda: build_model("MobileNetV2", num_classes=10), SMALL, "all"),
        (lambda: build_model("ShuffleV1", num_classes=10), SMALL, "all"),
        (lambda: build_model("ShuffleV2", num_classes=10), SMALL, "all"),
        (lambda: torchvision.models.mobilenet_v2(num_classes=10), LARGE, "all"),
        (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), LARGE, "all"),
        # Half of their norms come before the convolutions.
        (lambda: build_model("wrn_16_2", num_classes=10), SMALL, "some"),
        (lambda: torchvision.models.densenet121(num_classes=10), LARGE, "some"),
        (lambda: torchvision.models.efficientnet_b0(num_classes=10), LARGE, "all"),
    ],
)
def test_the_folded_network_answers_as_before(
    build: Callable[[], nn.Module], images: Tensor, folded: str
) -> None:
    torch.manual_seed(0)
    model = FeatureModel(trained(build()), images_example=images)
    with torch.no_grad():
        logits, features = model(images)
    total = num_norms(model)
    frozen = FrozenTeacher(copy.deepcopy(model), images_example=images)
    assert (frozen.num_folded == total) == (folded == "all") and frozen.num_folded > total / 3
    assert num_norms(frozen) == total - frozen.num_folded
    output = frozen(images)
    assert difference(logits, output.logits) < 1e-5
    assert difference(features, output.features) < 1e-5
    with torch.no_grad():
        assert torch.equal(model(images).logits, logits)  # the copy was changed, and not the model


class Twice(nn.Module):
    """One convolution before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        values = self.first(self.conv(images)) + self.second(self.conv(images.flip(3)))
        logits: Tensor = self.fc(values.mean((2, 3)))
        return logits


class Skips(Twice):
    """The convolution's output goes past the norm too."""

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images)
        logits: Tensor = self.fc((values + self.first(values)).mean((2, 3)))
        return logits


class SharedNorm(Twice):
    """Under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.second = self.first

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.first(self.conv(images)).mean((2, 3)))
        return logits


class Branches(Twice):
    """Its way depends on the values, which torch.fx cannot follow."""

    def forward(self, images: Tensor) -> Tensor:
        values = self.first(self.conv(images))
        logits: Tensor = self.fc((values if values.sum() > 0 else -values).mean((2, 3)))
        return logits


class Batchwise(Twice):
    """Its norm has no running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(4, track_running_stats=False)
        self.second = nn.BatchNorm2d(4, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.first(self.conv(images)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("kind", [Twice, Skips, SharedNorm, Branches])
def test_what_cannot_be_folded_is_left_as_it_is(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = FeatureModel(trained(kind()), images_example=SMALL)
    with torch.no_grad():
        logits = model(SMALL).logits
    frozen = FrozenTeacher(model, images_example=SMALL)
    assert frozen.num_folded == 0
    assert difference(logits, frozen(SMALL).logits) < 1e-5


def test_a_norm_without_running_statistics_is_left_as_it_is() -> None:
    assert fold_batch_norm_(Batchwise().eval()) == 0


def test_a_norm_without_affine_parameters_is_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False))
    trained(model)
    with torch.no_grad():
        before = model(SMALL)
        assert fold_batch_norm_(model) == 1
        assert difference(before, model(SMALL)) < 1e-5


@pytest.mark.parametrize("path", ["conv1", "bn1"])
def test_a_layer_whose_output_is_the_feature_is_left_as_it_is(path: str) -> None:
    torch.manual_seed(0)
    network = trained(build_model("resnet8", num_classes=5))
    assert {name for name, _ in network.named_modules()} >= {"conv1", "bn1"}
    model = FeatureModel(network, images_example=SMALL, feature_layer=path)
    total = num_norms(model)
    with torch.no_grad():
        features = model(SMALL).features
    frozen = FrozenTeacher(model, images_example=SMALL)
    assert frozen.num_folded == total - 1
    assert difference(features, frozen(SMALL).features) < 1e-5


def test_its_answers_need_no_gradient_and_heads_can_learn_from_them() -> None:
    torch.manual_seed(0)
    frozen = FrozenTeacher(
        FeatureModel(build_model("resnet8", num_classes=5), images_example=SMALL),
        images_example=SMALL,
    )
    student = FeatureModel(build_model("resnet8", num_classes=5), images_example=SMALL)
    distiller = Distiller(student, teacher_dim=frozen.feature_dim)
    output = frozen(SMALL)
    assert not output.logits.requires_grad and not output.features.requires_grad
    assert not output.logits.is_inference() and not output.features.is_inference()
    embedding = distiller(SMALL, output.features).teacher_embedding
    assert embedding is not None
    embedding[:, 0].sum().backward()
    head = distiller.teacher_head
    assert head is not None and head.weight.grad is not None and head.weight.grad.any()
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_its_answers_are_float32(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    model = FeatureModel(trained(Twice()), images_example=SMALL)
    with torch.no_grad():
        logits, features = model(SMALL)
    frozen = FrozenTeacher(model, images_example=SMALL, precision=precision)
    output = frozen(SMALL)
    assert output.logits.dtype == output.features.dtype == torch.float32
    assert 0 < difference(logits, output.logits) < 0.02
    assert 0 < difference(features, output.features) < 0.02
    types = {name: p.dtype for name, p in frozen.model.model.named_parameters()}
    assert types["conv.weight"] == types["fc.weight"] == precision
    assert types["first.weight"] == torch.float32  # which was not folded
    assert not torch.is_autocast_enabled("cpu")


def test_it_stays_in_eval_mode() -> None:
    frozen = FrozenTeacher(
        FeatureModel(trained(Twice()), images_example=SMALL), images_example=SMALL
    )
    frozen.train()
    assert not any(module.training for module in frozen.modules())


def test_it_can_be_compiled() -> None:
    torch.manual_seed(0)
    frozen = FrozenTeacher(
        FeatureModel(trained(build_model("resnet8", num_classes=5)), images_example=SMALL),
        images_example=SMALL,
    )
    before = frozen(SMALL)
    frozen.compile(backend="eager", fullgraph=True)
    after = frozen(SMALL)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.features, after.features)


class Flattens(nn.Module):
    """Wants its features in the usual order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 32 * 32, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(images).view(len(images), -1))
        return logits


@pytest.mark.parametrize(("kind", "done"), [(Twice, True), (Flattens, False)])
def test_channels_last_is_for_networks_that_can_do_with_it(
    kind: type[nn.Module], done: bool
) -> None:
    torch.manual_seed(0)
    model = kind()
    with torch.no_grad():
        before = model.eval()(SMALL)
    model.train()
    assert use_channels_last_(model, SMALL) == done
    assert model.training
    weight = next(p for p in model.parameters() if p.dim() == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last) == done
    assert weight.is_contiguous() != done
    last = torch.channels_last if done else torch.contiguous_format
    with torch.no_grad():
        after = model.eval()(SMALL.contiguous(memory_format=last))
    assert difference(before, after) < 1e-5


def test_a_teacher_that_flattens_is_frozen_in_the_usual_order() -> None:
    torch.manual_seed(0)
    model = FeatureModel(Flattens(), images_example=SMALL)
    with torch.no_grad():
        logits = model(SMALL).logits
    frozen = FrozenTeacher(model, images_example=SMALL)
    assert difference(logits, frozen(SMALL).logits) < 1e-5

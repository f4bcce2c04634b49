"""Intermediate features: by layer path, at the ends of stages, of a frozen teacher."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from tiny import TinyNet
from torch import Tensor, nn

from dcd_core import MODELS, FeatureModel, FrozenTeacher, HintedOutput, ModelOutput, build_model
from dcd_core.models import default_hints, stage_ends

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def hinted(model: nn.Module, *paths: str, images: Tensor = IMAGES) -> FeatureModel:
    wrapped = FeatureModel(model, images_example=images)
    wrapped.capture_hints(paths, images_example=images)
    return wrapped.eval()


def test_without_hints_a_model_gives_logits_and_features_alone() -> None:
    wrapped = hinted(TinyNet())
    assert isinstance(wrapped(IMAGES), ModelOutput)
    assert wrapped.hint_shapes == ()


def test_hints_are_the_outputs_of_the_layers_in_the_order_of_their_paths() -> None:
    network = TinyNet()
    wrapped = hinted(network, "fc", "conv")
    output = wrapped(IMAGES)
    assert isinstance(output, HintedOutput)
    assert wrapped.hint_shapes == ((5, 1, 1), (6, 32, 32))
    assert torch.equal(output.hints[0].flatten(1), output.logits)
    assert torch.equal(output.hints[1], network.conv(IMAGES))
    output.hints[1].sum().backward()
    assert network.conv.weight.grad is not None


def test_an_activation_in_place_does_not_change_a_hint() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network.append(nn.Linear(4, 5))
    hint = hinted(network, "0")(IMAGES).hints[0]
    assert torch.equal(hint, network[0](IMAGES))
    assert (hint < 0).any()


class _Odd(nn.Module):
    """Has a layer that does not run, and one that gives a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)
        self.pair = _Pair()
        self.tokens = nn.Flatten(2)
        self.fc = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        images, _ = self.pair(images)
        logits: Tensor = self.fc(self.tokens(images).mean(2))
        return logits


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("fcc", "hint_layers 'fcc' is not a module of _Odd: did you mean 'fc'"),
        ("unused", "hint_layers: 'unused' did not run: name another module"),
        ("pair", "hint_layers: 'pair' gives tuple: name a module whose output is"),
        ("tokens", r"hint_layers: 'tokens' gives shape \(3, 3, 1024\): name a module"),
    ],
)
def test_a_layer_that_gives_no_map_is_refused_and_leaves_the_model_as_it_was(
    path: str, message: str
) -> None:
    wrapped = FeatureModel(_Odd(), images_example=IMAGES)
    with pytest.raises(ValueError, match=message):
        wrapped.capture_hints([path], images_example=IMAGES)
    assert isinstance(wrapped(IMAGES), ModelOutput)


def test_a_copy_captures_its_own_hints() -> None:
    wrapped = hinted(TinyNet(), "conv")
    twin = copy.deepcopy(wrapped)
    with torch.no_grad():
        twin.model.get_submodule("conv").weight.zero_()  # type: ignore[operator, union-attr]
    assert not torch.equal(twin(IMAGES).hints[0], wrapped(IMAGES).hints[0])


@pytest.mark.parametrize("name", list(MODELS))
def test_the_stages_of_every_built_in_model_are_known(name: str) -> None:
    model = build_model(name, num_classes=5)
    ends = stage_ends(model)
    assert len(ends) in (3, 4)
    shapes = hinted(model, *ends).hint_shapes
    sizes = [height for _, height, _ in shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    if name == "resnet8x4":
        assert shapes == ((64, 32, 32), (128, 16, 16), (256, 8, 8))


def test_the_stages_of_torchvision_s_networks_for_imagenet_have_the_same_sizes() -> None:
    with torch.device("meta"):
        teacher, student = torchvision.models.resnet50(), torchvision.models.mobilenet_v2()
    sizes: dict[str, list[int]] = {"teacher": [], "student": []}
    own, wanted = default_hints(student, teacher, "stages")
    for name, model, paths in (("student", student, own), ("teacher", teacher, wanted)):
        for path in paths:
            model.get_submodule(path).register_forward_hook(
                lambda module, args, output, name=name: sizes[name].append(output.shape[2])
            )
        model.eval()(torch.zeros(1, 3, 224, 224, device="meta"))
    assert sizes == {"teacher": [56, 28, 14, 7], "student": [56, 28, 14, 7]}


def test_stages_are_paired_from_the_last_one_backwards() -> None:
    three, four = (build_model(name, num_classes=5) for name in ("resnet8", "vgg8"))
    assert default_hints(three, four, "stages") == (
        ["layer1", "layer2", "layer3"],
        ["block2", "block3", "block4"],
    )
    assert default_hints(four, three, "last") == (["block4"], ["layer3"])
    assert default_hints(three, three, "middle") == (["layer2"], ["layer2"])
    assert default_hints(four, four, "middle") == (["block2"], ["block2"])
    assert default_hints(TinyNet(), three, "none") == ([], [])
    with pytest.raises(ValueError, match="stages of the teacher, a TinyNet, end is not known"):
        default_hints(three, TinyNet(), "last")


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8"])
def test_a_frozen_teacher_is_folded_and_gives_the_same_hints(name: str) -> None:
    model = build_model(name, num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    wrapped = hinted(model, *stage_ends(model))
    expected = wrapped(IMAGES)
    frozen = FrozenTeacher(copy.deepcopy(wrapped), images_example=IMAGES)
    assert frozen.num_folded > 0
    assert frozen.hint_shapes == wrapped.hint_shapes
    found = frozen(IMAGES)
    assert len(found.hints) == len(expected.hints)
    for own, other in zip(found.hints, expected.hints, strict=True):
        assert not own.requires_grad
        torch.testing.assert_close(own, other.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_hints() -> None:
    wrapped = hinted(build_model("resnet8", num_classes=5), "layer1", "layer3")
    expected = wrapped(IMAGES)
    torch.compiler.reset()
    wrapped.compile(backend="aot_eager")
    found = wrapped(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

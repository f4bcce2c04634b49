"""torchvision's classifiers as students and teachers, with and without their weights."""

from __future__ import annotations

import email.message
import functools
import io
import urllib.error
import urllib.response
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from building import RGB, network, refused, student, teacher
from tiny_experiment import run_quietly, tiny_experiment
from torch import Tensor, nn
from torchvision import models

from dcd_core import Distiller, FeatureModel, Objective
from orchestrator.inputs import read_inputs
from orchestrator.origins import without_files
from orchestrator.sources import weights_facts
from orchestrator.spec import StudentSpec
from orchestrator.student_model import load_student, read_package

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LARGE = {  # a tiny experiment on images that torchvision's networks take
    "data.grey_to_rgb": True,
    "data.resize": 32,
    "data.limit": 8,
    "data.test_fraction": 0.9,
    "train.batch_size": 4,
    "train.epochs": 1,
    "objective.method": "dcd",
}


def small_images(name: str, batch: int = 2) -> tuple[Tensor, dict[str, Any]]:
    """About the smallest images that a network takes, and arguments for them."""
    size, args = max(32, models.get_model_weights(name).DEFAULT.meta["min_size"][0]), {}
    if name.startswith("swin_"):
        size = 32  # the weights' size is no limit
    elif name.startswith("vit_"):
        size = 28 if name == "vit_h_14" else 32
        args = {"image_size": size}
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, size, size, generator=generator), args


# Without weights


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_classifier_is_built_for_the_datas_classes_and_its_feature_found(name: str) -> None:
    images, args = small_images(name)
    built = student(images, source=f"torchvision:{name}", args=args)
    assert built.num_classes == 5
    heads = [
        module
        for module in built.model.modules()
        if (isinstance(module, nn.Linear) and module.out_features == 5)
        or (isinstance(module, nn.Conv2d) and module.out_channels == 5)
    ]
    head = heads[-1]
    assert built.feature_dim == (
        head.in_features if isinstance(head, nn.Linear) else head.in_channels
    )


LEARNERS = [
    *("resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"),
    *("shufflenet_v2_x1_0", "vgg11_bn", "densenet121", "convnext_tiny", "vit_b_16", "swin_t"),
    *("squeezenet1_1", "googlenet", "inception_v3", "alexnet", "mnasnet0_5", "regnet_y_400mf"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_classifier_learns_from_a_step_of_dcd(name: str) -> None:
    images, args = small_images(name, batch=4)
    built = student(images, source=f"torchvision:{name}", args=args)
    torch.manual_seed(0)
    distiller = Distiller(built, teacher_dim=7).train()
    objective = Objective(kd_weight=1.0, dcd_weight=1.0)
    labels, features, logits = torch.arange(4), torch.randn(4, 7), torch.randn(4, 5)
    losses = objective(distiller(images, features), labels=labels, teacher_logits=logits)
    assert all(term.isfinite() for term in (losses.total, *losses.terms.values()))
    before = {name: value.clone() for name, value in built.state_dict().items()}
    losses.total.backward()
    # All of it takes part, as DistributedDataParallel demands.
    assert [key for key, p in built.named_parameters() if p.grad is None] == []
    torch.optim.SGD(distiller.parameters(), lr=0.01).step()
    after = built.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_outputs_are_off(name: str) -> None:
    built = network(f"torchvision:{name}").train()
    assert built(torch.rand(2, 3, 96, 96)).shape == (2, 5)


def test_a_teacher_may_have_the_auxiliary_classifiers_of_its_checkpoint() -> None:
    trained = models.googlenet(num_classes=5, aux_logits=True, init_weights=False)
    built = teacher(
        source="torchvision:googlenet", args={"aux_logits": True}, state=trained.state_dict()
    )
    assert torch.equal(built(RGB).logits, trained.eval()(RGB))


def test_a_student_with_auxiliary_classifiers_is_refused() -> None:
    message = refused(lambda: student(source="torchvision:googlenet", args={"aux_logits": True}))
    assert message == (
        "student.source: torchvision:googlenet has auxiliary classifiers, which have no part in "
        "any loss here: build it with aux_logits: false"
    )


def test_args_reach_the_builder() -> None:
    dropout = network("torchvision:mobilenet_v2", args={"dropout": 0.7}).get_submodule(
        "classifier.0"
    )
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.7


@pytest.mark.parametrize(
    ("source", "weights", "text"),
    [
        ("torchvision:resnet19", None, "no such classifier; did you mean 'resnet"),
        ("torchvision:fcn_resnet50", None, "no such classifier"),
        ("torchvision:resnet18", "IMAGENET1K_V9", "no weights 'IMAGENET1K_V9'; there are IMAGENET"),
    ],
)
def test_unknown_names_are_told(source: str, weights: str | None, text: str) -> None:
    assert text in refused(lambda: network(source, weights=weights))


def test_wrong_args_of_a_builder_are_told() -> None:
    message = refused(lambda: network("torchvision:resnet18", args={"depth": 3}))
    assert "torchvision:resnet18: building it fails: TypeError" in message
    assert "depth" in message


# Image sizes


@pytest.mark.parametrize(
    ("name", "size", "remedy"),
    [
        ("alexnet", 32, "it takes images from 63 x 63 pixels on: set data.resize: 63 or more"),
        ("inception_v3", 64, "it takes images from 75 x 75 pixels on: set data.resize: 75 or more"),
        (
            "vit_b_16",
            32,
            "it is built for images of exactly 224 x 224 pixels: set data.resize: 224, or args: "
            "{image_size: N}, a multiple of its patches",
        ),
        (
            "maxvit_t",
            64,
            "it is built for images of exactly 224 x 224 pixels: set data.resize: 224",
        ),
    ],
)
def test_images_of_a_size_that_a_network_does_not_take_are_told_with_the_one_it_does(
    name: str, size: int, remedy: str
) -> None:
    source = f"torchvision:{name}"
    message = refused(lambda: student(torch.rand(2, 3, size, size), source=source))
    start = f"student.source: {source} fails on images of shape (3, {size}, {size})"
    assert message.startswith(f"{start} (channels, height, width): {remedy} (")


def test_a_vision_transformer_can_be_built_for_small_images() -> None:
    built = student(RGB, source="torchvision:vit_b_16", args={"image_size": 32})
    assert (built.num_classes, built.feature_dim) == (5, 768)
    message = refused(lambda: student(source="torchvision:vit_b_16", args={"image_size": 40}))
    assert message.startswith("student.source: torchvision:vit_b_16: building it fails: ")


# Weights


@pytest.mark.parametrize(
    "name", ["IMAGENET1K_V1", "DEFAULT", "SqueezeNet1_1_Weights.IMAGENET1K_V1"]
)
def test_with_weights_only_the_classifier_is_new(
    downloaded: Callable[[str, str], dict[str, Tensor]], name: str
) -> None:
    weights = downloaded("squeezenet1_1", "IMAGENET1K_V1")
    built = network("torchvision:squeezenet1_1", weights=name).state_dict()
    assert built["classifier.1.weight"].shape == (5, 512, 1, 1)
    same = [name for name in built if torch.equal(built[name], weights[name])]
    assert len(same) == len(built) - 2


def test_a_teacher_with_weights_keeps_their_classes(
    downloaded: Callable[[str, str], dict[str, Tensor]],
) -> None:
    weights = downloaded("shufflenet_v2_x0_5", "IMAGENET1K_V1")
    built = teacher(source="torchvision:shufflenet_v2_x0_5", weights="DEFAULT")
    assert built.num_classes == 1000
    assert torch.equal(built.model.state_dict()["fc.weight"], weights["fc.weight"])


@pytest.mark.parametrize(
    ("name", "replaced"),
    [("shufflenet_v2_x0_5", "fc"), ("mobilenet_v3_small", "classifier.3")],
)
def test_the_classifier_that_is_replaced_is_the_last_layer(
    name: str, replaced: str, downloaded: Callable[[str, str], dict[str, Tensor]]
) -> None:
    weights = downloaded(name, "IMAGENET1K_V1")
    built = network(f"torchvision:{name}", weights="IMAGENET1K_V1").state_dict()
    changed = [key for key in built if built[key].shape != weights[key].shape]
    assert changed == [f"{replaced}.weight", f"{replaced}.bias"]


def test_weights_tell_their_classes_and_normalisation() -> None:
    facts = weights_facts("torchvision:resnet18", "IMAGENET1K_V1")
    assert facts.num_classes == 1000
    assert facts.normalize.mean == IMAGENET_MEAN
    assert facts.normalize.std == IMAGENET_STD


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("squeezenet1_1", {}),
        *((name, {}) for name in ("googlenet", "inception_v3")),
        *((name, {"aux_logits": False}) for name in ("googlenet", "inception_v3")),
        *((name, {"transform_input": False}) for name in ("googlenet", "inception_v3")),
    ],
)
def test_a_network_with_weights_is_rebuilt_without_them(
    name: str, args: dict[str, Any], downloaded: Callable[[str, str], dict[str, Tensor]]
) -> None:
    downloaded(name, "IMAGENET1K_V1")
    source = f"torchvision:{name}"
    loaded = network(source, weights="IMAGENET1K_V1", num_classes=1000, args=args)
    images = torch.rand(2, 3, 96, 96)
    assert loaded.train()(images).shape == (2, 1000)
    spec = without_files(StudentSpec(source=source, weights="IMAGENET1K_V1", args=args))
    rebuilt = network(source, num_classes=1000, args=spec.args)
    rebuilt.load_state_dict(loaded.state_dict())
    assert torch.equal(rebuilt.eval()(images), loaded.eval()(images))


def test_a_vision_transformers_weights_tell_the_size_it_is_built_for() -> None:
    facts = weights_facts("torchvision:vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert facts.args == {"image_size": 384}


# Downloads


@pytest.fixture
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the weights of shufflenet_v2_x0_5 will lie."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"


def _with_weights() -> nn.Module:
    return network("torchvision:shufflenet_v2_x0_5", weights="IMAGENET1K_V1", num_classes=1000)


def test_weights_that_cannot_be_downloaded_are_told_with_where_to_put_them(
    nothing_downloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(request: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    message = refused(_with_weights)
    assert message == (
        "torchvision:shufflenet_v2_x0_5: https://download.pytorch.org/models/"
        "shufflenetv2_x0.5-f707e7126e.pth cannot be downloaded (URLError: <urlopen error no route "
        f"to host>): fetch it elsewhere and put it at {nothing_downloaded}, or set TORCH_HOME to a "
        "folder that has it in hub/checkpoints"
    )


def test_a_download_of_another_checksum_is_told_and_not_kept(
    nothing_downloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_login_page(request: Any) -> Any:
        content = io.BytesIO(b"<html>please log in</html>")
        return urllib.response.addinfourl(content, email.message.Message(), request.full_url)

    monkeypatch.setattr(torch.hub, "urlopen", a_login_page)
    message = refused(_with_weights)
    assert "is not that file, for its checksum is another: try again, or fetch it" in message
    assert list(nothing_downloaded.parent.iterdir()) == []


def test_a_damaged_file_of_weights_is_told(nothing_downloaded: Path) -> None:
    nothing_downloaded.parent.mkdir(parents=True)
    nothing_downloaded.write_bytes(b"half of it")
    assert refused(_with_weights) == (
        f"torchvision:shufflenet_v2_x0_5: {nothing_downloaded} is damaged: delete it, and it is "
        "downloaded again"
    )


def test_wrong_args_are_told_as_such_with_weights_too(
    downloaded: Callable[[str, str], dict[str, Tensor]],
) -> None:
    downloaded("shufflenet_v2_x0_5", "IMAGENET1K_V1")
    source = "torchvision:shufflenet_v2_x0_5"
    message = refused(lambda: network(source, weights="DEFAULT", args={"depth": 3}))
    assert "building it fails: TypeError" in message


# In an experiment


def test_a_teacher_with_weights_sees_images_as_they_were_trained_unless_told_otherwise(
    workplace: Path, teacher_file: Path, downloaded: Callable[[str, str], dict[str, Tensor]]
) -> None:
    downloaded("shufflenet_v2_x0_5", "IMAGENET1K_V1")
    values = {
        **LARGE,
        "teacher": {"source": "torchvision:shufflenet_v2_x0_5", "weights": "DEFAULT"},
    }
    inputs = read_inputs(tiny_experiment(teacher_file, values))
    assert inputs.teacher is not None
    assert inputs.teacher.pixels == (IMAGENET_MEAN, IMAGENET_STD)
    assert inputs.teacher.lineage["teacher.origin"] == "DEFAULT"
    assert (
        "the teacher sees images as its weights were trained on them, mean (0.485, 0.456, 0.406), "
        "std (0.229, 0.224, 0.225): teacher.normalize changes that"
    ) in inputs.notes
    half = {"teacher.normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    told = read_inputs(tiny_experiment(teacher_file, {**values, **half}))
    assert told.teacher is not None
    assert told.teacher.pixels == ((0.5,) * 3, (0.5,) * 3)
    assert not any("as its weights were trained" in note for note in told.notes)


def test_weights_for_colours_and_grey_images_are_told_with_the_remedy(
    workplace: Path, teacher_file: Path, downloaded: Callable[[str, str], dict[str, Tensor]]
) -> None:
    downloaded("shufflenet_v2_x0_5", "IMAGENET1K_V1")
    grey = {**LARGE, "data.grey_to_rgb": False}
    section = {"source": "torchvision:shufflenet_v2_x0_5", "weights": "DEFAULT"}
    for role in ("teacher", "student"):
        experiment = tiny_experiment(teacher_file, {**grey, role: section})
        message = refused(functools.partial(read_inputs, experiment))
        assert message == (
            f"{role}.source: torchvision:shufflenet_v2_x0_5 takes images of 3 channels and these "
            "have 1: set data.grey_to_rgb: true, or a network for them"
        )


def test_a_student_with_weights_gets_a_new_classifier_and_sees_images_as_they_were_trained(
    workplace: Path, teacher_file: Path, downloaded: Callable[[str, str], dict[str, Tensor]]
) -> None:
    weights = downloaded("shufflenet_v2_x0_5", "IMAGENET1K_V1")
    section = {"source": "torchvision:shufflenet_v2_x0_5", "weights": "IMAGENET1K_V1"}
    values = {**LARGE, "student": section, "objective.method": "ce", "teacher": None}
    experiment = tiny_experiment(teacher_file, values)

    inputs = read_inputs(experiment)

    started: FeatureModel = inputs.student
    assert torch.equal(started.model.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])
    assert started.num_classes == 10
    assert (
        "student.weights: IMAGENET1K_V1 has 1000 classes and the data 10, so the classifier is "
        "replaced by a new one"
    ) in inputs.notes
    package = read_package(run_quietly(experiment).folder.location)
    assert (package.mean, package.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert package.lineage["student.origin"] == "IMAGENET1K_V1"
    half = {"data.normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}, "name": "half"}
    told = run_quietly(tiny_experiment(teacher_file, {**values, **half}))
    assert read_package(told.folder.location).mean == (0.5,) * 3
    assert load_student(told.folder.location)(RGB).shape == (2, 10)

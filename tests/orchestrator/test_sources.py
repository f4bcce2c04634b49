"""Networks by name, and what a user is told when one cannot be built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from building import GREY, RGB, network, refused, student, teacher
from torch import Tensor, nn

from dcd_core.features import FeatureModel
from orchestrator.sources import check_classes, num_parameters
from orchestrator.storage import Folder
from orchestrator.student_model import save_package

OWN_NETWORKS = """
from torch import nn

LIMIT = 3

def plain(num_classes, in_channels=3, width=8):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )

def fixed():
    return plain(12)

def open_ended(**kwargs):
    assert "in_channels" not in kwargs
    return plain(**kwargs)

def lazy(num_classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))

def nothing():
    return None

def broken():
    raise RuntimeError("no luck today")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that lies in the working directory."""
    name = f"own_networks_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN_NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


# Built-in networks


@pytest.mark.parametrize("images", [RGB, GREY])
def test_a_built_in_network_takes_the_datas_classes_and_channels(images: Tensor) -> None:
    built = student(images, source="resnet8")
    output = built(images)
    assert output.logits.shape == (2, 5)
    assert output.features.shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "meant"), [("resnet32x5", "resnet32x4"), ("resnet50", "ResNet50")]
)
def test_a_misspelt_built_in_network_is_told_the_nearest_name(name: str, meant: str) -> None:
    message = refused(lambda: teacher(source=name))
    told = f"teacher.source: no built-in network {name!r}; did you mean {meant!r}?"
    assert message.startswith(told)


def test_args_for_a_built_in_network_are_refused() -> None:
    assert "resnet8: takes no args, and was given width" in refused(
        lambda: student(source="resnet8", args={"width": 3})
    )


def test_weights_for_anything_but_torchvision_are_refused() -> None:
    assert "weights are torchvision's" in refused(
        lambda: student(source="resnet8", weights="IMAGENET1K_V1")
    )


# A function of the user's own


def test_a_function_in_the_working_directory_gets_what_its_signature_names(own: str) -> None:
    built = network(f"{own}:plain", in_channels=1, args={"width": 4})
    assert built(GREY).shape == (2, 5)
    assert built.state_dict()["0.weight"].shape == (4, 1, 3, 3)


def test_args_win_over_what_the_data_says(own: str) -> None:
    assert network(f"{own}:plain", args={"num_classes": 9})(RGB).shape == (2, 9)


def test_a_function_of_kwargs_gets_the_number_of_classes_alone(own: str) -> None:
    assert network(f"{own}:open_ended")(RGB).shape == (2, 5)


def test_a_function_without_arguments_is_called_without(own: str) -> None:
    assert network(f"{own}:fixed")(RGB).shape == (2, 12)


def test_a_network_with_lazy_layers_is_built_and_takes_weights(own: str) -> None:
    built = student(source=f"{own}:lazy")
    assert built(RGB).logits.shape == (2, 5)
    state = {name: torch.ones_like(value) for name, value in built.model.state_dict().items()}
    loaded = teacher(source=f"{own}:lazy", state=state)
    assert (loaded.model.state_dict()["0.weight"] == 1).all()


def test_the_working_directory_comes_before_what_is_installed(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{own}.py").write_text("raise RuntimeError('the wrong file')")
    monkeypatch.syspath_prepend(str(elsewhere))
    assert network(f"{own}:fixed")(RGB).shape == (2, 12)


@pytest.mark.parametrize(
    ("function", "args", "text"),
    [
        ("plane", {}, "'plane' is not there in"),
        ("plane", {}, "did you mean 'plain'?"),
        ("LIMIT", {}, "'LIMIT' is not a function in"),
        (
            "plain",
            {"depth": 3},
            "got an unexpected keyword argument 'depth'; it takes (num_classes",
        ),
        ("nothing", {}, "returned a NoneType, where a torch.nn.Module is needed"),
        ("broken", {}, "building it fails: RuntimeError: no luck today"),
    ],
)
def test_what_is_wrong_with_a_function_is_told(
    own: str, function: str, args: dict[str, Any], text: str
) -> None:
    message = refused(lambda: student(source=f"{own}:{function}", args=args))
    assert message.startswith(f"student.source: {own}:{function}: ")
    assert text in message


def test_a_missing_module_is_told_with_where_it_was_looked_for(own: str, tmp_path: Path) -> None:
    message = refused(lambda: network("no_such_module.networks:build"))
    assert f"no module 'no_such_module' in {tmp_path} or on the Python path" in message


def test_a_misspelt_scheme_is_told() -> None:
    assert "did you mean 'torchvision:'?" in refused(lambda: network("torchvison:resnet18"))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
        ("def broken(:", "SyntaxError"),
        ("raise ValueError('bad day')", "ValueError: bad day"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_the_cause(
    own: str, tmp_path: Path, content: str, cause: str
) -> None:
    (tmp_path / f"failing_{own}.py").write_text(content)
    message = refused(lambda: network(f"failing_{own}:build"))
    assert f"importing failing_{own} fails: " in message
    assert cause in message


# A tracked student


def test_a_tracked_student_is_a_teacher_with_its_own_weights_and_classes(tmp_path: Path) -> None:
    original = network("resnet8", num_classes=7).eval()
    save_package(
        Folder(str(tmp_path)),
        state_dict=original.state_dict(),
        network={"source": "resnet8", "args": {}, "num_classes": 7, "in_channels": 3},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        image_shape=(3, 32, 32),
        class_names=None,
        metrics={},
        lineage={},
    )
    built = teacher(source=f"mlflow:{tmp_path}")
    assert built.num_classes == 7
    assert torch.equal(built(RGB).logits, original(RGB))
    message = refused(lambda: student(source=f"mlflow:{tmp_path}"))
    assert "gives 7 classes and the data has 5" in message


def test_a_tracked_student_that_is_not_there_is_told(tmp_path: Path) -> None:
    message = refused(lambda: teacher(source=f"mlflow:{tmp_path}"))
    assert message.startswith("teacher.source: ")
    assert str(tmp_path) in message


# Students


def test_a_students_initialisation_depends_on_its_seed_alone() -> None:
    torch.manual_seed(7)
    expected_draw = torch.rand(3)
    torch.manual_seed(7)
    first = student(source="resnet8", seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected_draw)
    second = student(source="resnet8", seed=1).state_dict()
    other = student(source="resnet8", seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.conv1.weight"], other["model.conv1.weight"])


def test_a_student_starts_from_its_checkpoint(tmp_path: Path) -> None:
    state = network("resnet8").state_dict()
    torch.save({"model": state}, tmp_path / "start.pt")
    built = student(source="resnet8", checkpoint=str(tmp_path / "start.pt"))
    assert torch.equal(built.model.state_dict()["conv1.weight"], state["conv1.weight"])
    assert all(parameter.requires_grad for parameter in built.parameters())


def test_a_students_missing_checkpoint_is_named_with_its_setting(tmp_path: Path) -> None:
    message = refused(lambda: student(source="resnet8", checkpoint=str(tmp_path / "no.pt")))
    assert message == f"student.checkpoint: {tmp_path}/no.pt: there is no such checkpoint file"


def test_a_student_of_other_classes_than_the_datas_is_refused(own: str) -> None:
    message = refused(lambda: student(source=f"{own}:fixed"))
    assert f"{own}:fixed gives 12 classes and the data has 5" in message


def test_the_feature_layer_can_be_named_and_a_wrong_one_is_told() -> None:
    assert student(source="resnet8", layer="layer2").feature_dim == 32
    message = refused(lambda: student(source="resnet8", layer="layer9"))
    assert message.startswith("student.source: resnet8: ")
    assert "layer9" in message


def test_grey_images_in_an_rgb_network_are_told_with_the_remedy() -> None:
    message = refused(lambda: student(GREY, source="torchvision:resnet18"))
    assert "takes images of 3 channels and these have 1: set data.grey_to_rgb: true" in message


def test_images_that_are_too_small_are_told_with_their_shape_and_the_cause() -> None:
    message = refused(lambda: student(RGB[:, :, :4, :4], source="vgg8"))
    assert "vgg8 fails on images of shape (3, 4, 4) (channels, height, width): Runtime" in message


# Teachers


def test_a_teacher_is_frozen_and_in_eval_mode() -> None:
    built = teacher(source="resnet8")
    assert not any(parameter.requires_grad for parameter in built.parameters())
    assert not any(module.training for module in built.modules())
    before = built.model.state_dict()["bn1.running_mean"].clone()
    built(RGB)
    assert torch.equal(built.model.state_dict()["bn1.running_mean"], before)


def test_a_teacher_takes_given_weights_in_place_of_its_checkpoint(tmp_path: Path) -> None:
    state = network("resnet8").state_dict()
    built = teacher(source="resnet8", checkpoint=str(tmp_path / "not_read.pt"), state=state)
    assert torch.equal(built.model.state_dict()["fc.weight"], state["fc.weight"])


def test_a_teacher_without_weights_is_the_same_in_every_process() -> None:
    torch.manual_seed(1)
    first = teacher(source="resnet8").state_dict()
    torch.manual_seed(2)
    second = teacher(source="resnet8").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_teacher_may_have_classes_of_its_own(tmp_path: Path) -> None:
    state = network("resnet8", num_classes=100).state_dict()
    torch.save(state, tmp_path / "teacher.pt")
    checkpoint = str(tmp_path / "teacher.pt")
    assert teacher(source="resnet8", checkpoint=checkpoint, num_classes=100).num_classes == 100
    message = refused(lambda: teacher(source="resnet8", checkpoint=checkpoint))
    assert message.startswith(f"teacher.checkpoint: {checkpoint}: the checkpoint has 100 classes")
    assert "the data 5" in message
    assert "teacher.num_classes: 100" in message


def test_the_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(network("resnet14").state_dict(), tmp_path / "teacher.pt")
    message = refused(lambda: teacher(source="resnet8", checkpoint=str(tmp_path / "teacher.pt")))
    assert "the weights are not of this network: unexpected layer1.1." in message


def test_a_grey_image_meets_a_checkpoint_for_rgb_with_the_remedy(tmp_path: Path) -> None:
    torch.save(network("resnet8").state_dict(), tmp_path / "teacher.pt")
    message = refused(
        lambda: teacher(GREY, source="resnet8", checkpoint=str(tmp_path / "teacher.pt"))
    )
    assert "takes images of 3 channels and these have 1: set data.grey_to_rgb: true" in message


def test_a_number_of_classes_that_the_teacher_does_not_have_is_refused(own: str) -> None:
    assert teacher(source=f"{own}:fixed").num_classes == 12
    message = refused(lambda: teacher(source=f"{own}:fixed", num_classes=20))
    assert message.startswith(f"teacher.num_classes: {own}:fixed has 12 classes and not 20")


def test_other_classes_are_refused_with_kd_and_noted_without(own: str) -> None:
    built: FeatureModel = teacher(source=f"{own}:fixed")
    assert check_classes(built, num_classes=12, uses_kd=True) is None
    note = check_classes(built, num_classes=5, uses_kd=False)
    assert note == "the teacher has 12 classes and the data 5: only its features are used"
    message = refused(lambda: check_classes(built, num_classes=5, uses_kd=True))
    assert "it has 12 classes and the data 5" in message
    assert "objective.kd_weight: 0" in message


def test_parameters_are_counted_and_shared_ones_once() -> None:
    layer = nn.Linear(3, 4)
    assert num_parameters(layer) == 16
    assert num_parameters(nn.Sequential(layer, layer, nn.BatchNorm1d(4))) == 24

"""timm's networks as students and teachers, with and without their weights."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from building import GREY, RGB, network, refused, student, teacher
from safetensors.torch import save_file
from tiny_experiment import run_quietly, tiny_experiment
from torch import Tensor

from dcd_core import Distiller, Objective
from orchestrator.inputs import read_inputs
from orchestrator.sources import weights_facts
from orchestrator.student_model import load_student, read_package

SMALL_VIT = {"img_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    ("name", "args", "feature_dim"),
    [
        ("resnet18", {}, 512),
        ("mobilenetv3_small_050", {}, 1024),
        ("convnext_atto", {}, 320),
        ("vit_tiny_patch16_224", SMALL_VIT, 192),
    ],
)
@pytest.mark.parametrize("images", [RGB, GREY], ids=["rgb", "grey"])
def test_a_network_takes_the_datas_classes_and_channels_and_learns_from_a_step_of_dcd(
    name: str, args: dict[str, Any], feature_dim: int, images: Tensor
) -> None:
    built = student(images, source=f"timm:{name}", args=args)
    assert (built.num_classes, built.feature_dim) == (5, feature_dim)
    torch.manual_seed(0)
    distiller = Distiller(built, teacher_dim=7).train()
    output = distiller(images, torch.randn(2, 7))
    losses = Objective(kd_weight=0.0, dcd_weight=1.0)(output, labels=torch.tensor([0, 1]))
    losses.total.backward()
    assert losses.total.isfinite()
    assert [key for key, p in built.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"source": "timm:resnet19"}, "timm has no such network; did you mean 'resnet"),
        (
            {"source": "timm:resnet18.a1_in1k"},
            "the part after the dot is a tag of weights: set source: timm:resnet18 and weights: "
            "a1_in1k",
        ),
        ({"source": "timm:resnet18", "args": {"depth": 3}}, "building it fails: TypeError"),
        (
            {"source": "timm:resnet18", "weights": "a9_in1k"},
            "no weights 'a9_in1k'; there are DEFAULT, a1_in1k, ",
        ),
    ],
)
def test_what_is_wrong_with_a_name_or_its_arguments_is_told(
    spec: dict[str, Any], text: str
) -> None:
    assert text in refused(lambda: student(**spec))


def test_where_timm_is_not_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refused(lambda: student(source="timm:resnet18")) == (
        "student.source: timm:resnet18: timm is not installed: pip install 'dcd-orchestrator[timm]'"
    )


# Weights


def test_weights_tell_their_classes_normalisation_and_image_size() -> None:
    facts = weights_facts("timm:resnet18", "a1_in1k")
    assert (facts.num_classes, facts.args) == (1000, {})
    assert facts.normalize.mean == pytest.approx((0.485, 0.456, 0.406))
    facts = weights_facts("timm:vit_tiny_patch16_224", "augreg_in21k")
    assert (facts.num_classes, facts.args) == (21843, {"img_size": [224, 224]})
    assert facts.normalize.std == (0.5, 0.5, 0.5)


@pytest.fixture
def fetched(tmp_path: Path) -> dict[str, Any]:
    """Random weights of resnet18 in a file, as arguments by which timm finds them there."""
    torch.manual_seed(0)
    path = tmp_path / "resnet18.pt"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    return {"pretrained_cfg_overlay": {"file": str(path)}}


def _state(args: dict[str, Any]) -> dict[str, Tensor]:
    return torch.load(args["pretrained_cfg_overlay"]["file"], weights_only=True)


@pytest.mark.parametrize("weights", ["a1_in1k", "DEFAULT"])
def test_with_weights_only_the_classifier_of_a_student_is_new(
    fetched: dict[str, Any], weights: str
) -> None:
    built = network("timm:resnet18", weights=weights, args=fetched).state_dict()
    expected = _state(fetched)
    changed = [key for key in built if not torch.equal(built[key], expected[key])]
    assert changed == ["fc.weight", "fc.bias"]
    assert built["fc.weight"].shape == (5, 512)


def test_a_teacher_with_weights_keeps_their_classes(fetched: dict[str, Any]) -> None:
    built = teacher(source="timm:resnet18", weights="DEFAULT", args=fetched)
    assert built.num_classes == 1000
    assert torch.equal(built.model.state_dict()["fc.weight"], _state(fetched)["fc.weight"])


def test_weights_that_cannot_be_had_are_told_with_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = refused(lambda: teacher(source="timm:resnet18", weights="a1_in1k"))
    assert message.startswith(
        "teacher.source: timm:resnet18: its weights a1_in1k cannot be loaded from "
        "timm/resnet18.a1_in1k ("
    )
    assert message.endswith(
        "): fetch them where there is a network, and set HF_HOME and TORCH_HOME to the folders "
        "they were kept in"
    )


@pytest.fixture
def ill_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that is out of order, and an empty cache; the paths that it is asked for."""
    from huggingface_hub import constants

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_that_gives_no_weights_is_asked_once_and_without_a_line_of_its_own(
    ill_hub: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    message = refused(lambda: teacher(source="timm:resnet18", weights="a1_in1k"))
    assert "cannot be loaded from timm/resnet18.a1_in1k (" in message
    assert ill_hub == ["/timm/resnet18.a1_in1k/resolve/main/model.safetensors"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_kept_are_read_without_asking_the_hub(
    ill_hub: list[str], tmp_path: Path, name: str
) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    folder = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    file = folder / "snapshots" / commit / name
    file.parent.mkdir(parents=True)
    state = timm.create_model("resnet18").state_dict()
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    built = teacher(source="timm:resnet18", weights="a1_in1k").model.state_dict()
    assert torch.equal(built["fc.weight"], state["fc.weight"])
    assert ill_hub == []
    assert not constants.HF_HUB_OFFLINE


def test_wrong_args_are_told_as_such_with_weights_too(fetched: dict[str, Any]) -> None:
    args = {**fetched, "depth": 3}
    message = refused(lambda: network("timm:resnet18", weights="DEFAULT", args=args))
    assert "building it fails: TypeError" in message


def test_an_experiment_with_timm_on_both_sides_leaves_a_student_that_is_rebuilt(
    workplace: Path, teacher_file: Path, fetched: dict[str, Any]
) -> None:
    section = {"source": "timm:resnet18", "weights": "a1_in1k", "args": fetched}
    values = {
        "data.grey_to_rgb": True,
        "data.resize": 32,
        "data.limit": 8,
        "data.test_fraction": 0.9,
        "train.batch_size": 4,
        "train.epochs": 1,
        "objective.method": "dcd",
        "teacher": section,
        "student": {"source": "timm:mobilenetv3_small_050"},
    }
    experiment = tiny_experiment(teacher_file, values)
    inputs = read_inputs(experiment)
    assert inputs.teacher is not None
    assert inputs.teacher.pixels.mean == pytest.approx((0.485, 0.456, 0.406))
    run = run_quietly(experiment).folder.location
    assert read_package(run).source == "timm:mobilenetv3_small_050"
    assert load_student(run)(RGB).shape == (2, 10)


def test_weights_for_colours_and_grey_images_are_told_with_the_remedy(
    workplace: Path, teacher_file: Path, fetched: dict[str, Any]
) -> None:
    section = {"source": "timm:resnet18", "weights": "a1_in1k", "args": fetched}
    values = {"teacher": section, "data.resize": 32, "objective.method": "dcd"}
    assert refused(lambda: read_inputs(tiny_experiment(teacher_file, values))) == (
        "teacher.source: timm:resnet18 was trained on images of 3 channels and these have 1: set "
        "data.grey_to_rgb: true, or teacher.normalize"
    )

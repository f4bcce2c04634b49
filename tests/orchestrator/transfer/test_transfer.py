"""`dcd transfer` on real runs: features, probes, tables, refusals."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_networks
import torch
from digit_folder import save_digits
from rich.console import Console
from safetensors.torch import load_file
from tiny_experiment import run_quietly, tiny_experiment, tiny_values, write_experiment
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from dcd_core import normalize
from orchestrator.data import load_dataset
from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment
from orchestrator.progress import Display
from orchestrator.student_model import load_student, read_package
from orchestrator.transfer.probe import ProbeSettings
from orchestrator.transfer.run import Left, Request, describe_left, transfer_models

HERE = Path(__file__).resolve().parents[1]
REPOSITORY = HERE.parents[1]
QUICK = ProbeSettings(epochs=8, lr=0.5)


@pytest.fixture(autouse=True)
def _in_a_workplace(workplace: Path) -> None:
    pass


@pytest.fixture
def photos(tmp_path: Path) -> tuple[str, ...]:
    """Overrides for a folder of the pictures of four digits."""
    save_digits(tmp_path / "photos", classes=range(4))
    return (f"data.path={tmp_path}/photos", "data.test_fraction=0.3")


def transfer(*models: str, **request: Any) -> list[Left]:
    """Without a word on the terminal."""
    display = Display(Console(file=io.StringIO()))
    asked: dict[str, Any] = {"data": "imagefolder", "settings": QUICK} | request
    return transfer_models(Request(models, **asked), display=display)


def train(teacher_file: Path, updates: Mapping[str, Any] | None = None) -> None:
    """A finished run."""
    run_quietly(tiny_experiment(teacher_file, updates))


def test_a_students_features_serve_other_classes(
    teacher_file: Path, photos: tuple[str, ...]
) -> None:
    train(teacher_file)
    (left,) = transfer("tiny", overrides=photos)
    found = left.transfer
    assert found.feature_dim == 6
    assert found.class_names == ("one", "three", "two", "zero")
    assert found.scores[0].test_top1 > 40  # of four classes, from six random features
    assert found.scores[0].test_top5 is None


def test_the_kept_probe_on_the_networks_features_gives_the_score_of_the_table(
    teacher_file: Path, photos: tuple[str, ...]
) -> None:
    train(teacher_file)
    (left,) = transfer("tiny", overrides=photos, seeds=3)
    folder = Path(left.folder.location)
    assert sorted(path.name for path in folder.iterdir()) == [
        "probe.json", "probe.safetensors", "transfer.json",
    ]  # fmt: skip
    about = json.loads((folder / "probe.json").read_text())
    values = json.loads((folder / "transfer.json").read_text())
    package = read_package("dcd_runs/tiny")
    assert tuple(about["normalize"]["mean"]) == package.mean
    # Everything anew: images, the student up to its classifier, the probe.
    section = {"source": "imagefolder", "path": photos[0].partition("=")[2],
               "test_fraction": 0.3, "resize": [8, 8]}  # fmt: skip
    experiment = build_experiment(
        {"name": "x", "objective": {"method": "ce"}, "data": section}, where="test"
    )
    test = load_dataset(experiment.data).test
    assert test is not None
    inputs = normalize(from_dlpack(test.images), mean=package.mean, std=package.std)
    student = load_student("dcd_runs/tiny")
    with torch.no_grad():
        hidden = torch.relu(student.norm(student.conv(inputs))).mean((2, 3))
        features = student.activation(student.hidden(hidden))
        probe = load_file(folder / "probe.safetensors")
        predicted = (features @ probe["weight"].T + probe["bias"]).argmax(1)
    top1 = 100 * float((predicted == from_dlpack(test.labels)).double().mean())
    chosen = next(score for score in values["scores"] if score["seed"] == about["seed"])
    assert chosen["test_top1"] == pytest.approx(top1)
    assert chosen["val_top1"] == max(score["val_top1"] for score in values["scores"])
    assert chosen["best_epoch"] == about["epoch"]


def test_features_are_computed_once_whatever_the_epochs_and_seeds(
    teacher_file: Path, photos: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(teacher_file)
    seen: list[int] = []

    def count(network: tiny_networks.Tiny, images: Tensor) -> Tensor:
        assert not network.training
        seen.append(len(images))
        return images

    monkeypatch.setattr(tiny_networks, "on_forward", count)
    transfer("tiny", overrides=photos, settings=ProbeSettings(epochs=1))
    once = sum(size for size in seen if size > 2)  # two images try a network
    seen.clear()
    transfer("tiny", overrides=photos, settings=ProbeSettings(epochs=5), seeds=2)
    assert once == 4 * 60 == sum(size for size in seen if size > 2)


def test_models_are_compared_on_the_same_images_with_paired_differences(
    teacher_file: Path, tmp_path: Path, photos: tuple[str, ...]
) -> None:
    train(teacher_file)
    train(teacher_file, {"name": "large", "data.resize": 16, "student.args": {"width": 12}})
    left = transfer("tiny", "large", overrides=photos, seeds=3)
    small, large = (one.transfer for one in left)
    assert (small.image_shape, large.image_shape) == ((1, 8, 8), (1, 16, 16))
    differences = np.array(large.test_top1) - np.array(small.test_top1)
    text = describe_left(left)
    assert f"{differences.mean():+.2f}" in text
    assert "3 seeds of the probes" in text
    assert text.count("results  ") == 2
    assert "n = 3" in text or "each of 3 seeds" in text  # by the verdict
    spread = np.std(small.test_top1, ddof=1)
    if spread > 0:
        half = 4.302653 * spread / np.sqrt(3)  # Student's t with two degrees of freedom
        low, high = np.mean(small.test_top1) - half, np.mean(small.test_top1) + half
        assert f"{low:.2f} to {high:.2f}" in text


def test_a_teacher_and_a_checkpoint_transfer_too(
    teacher_file: Path, tmp_path: Path, photos: tuple[str, ...]
) -> None:
    values = tiny_values(teacher_file, {"teacher.num_classes": 10})
    spec = write_experiment(tmp_path / "e.yaml", values)
    (teacher,) = transfer(str(spec), overrides=photos)
    (checkpoint,) = transfer(
        str(teacher_file), source="test_transfer:teacher_network", num_classes=10, overrides=photos
    )
    assert teacher.transfer.test_top1 == checkpoint.transfer.test_top1
    note = f"set data.normalize to what {checkpoint.transfer.name} was trained with"
    assert note in describe_left([checkpoint]) and note not in describe_left([teacher])
    assert note in json.loads(checkpoint.folder.read("transfer.json") or b"")["notes"][0]


def teacher_network(num_classes: int) -> torch.nn.Module:
    """The tiny teacher, without arguments."""
    return tiny_networks.network(num_classes, width=5)


def test_the_features_may_be_those_of_another_layer(
    teacher_file: Path, photos: tuple[str, ...]
) -> None:
    train(teacher_file)
    (left,) = transfer("tiny", overrides=photos, feature_layer="norm")
    assert left.transfer.feature_dim == 4
    with pytest.raises(UserError, match=r"tiny: feature_layer 'nrm' .* did you mean 'norm'"):
        transfer("tiny", overrides=photos, feature_layer="nrm")


def test_mistakes_are_refused_before_anything_is_written(
    teacher_file: Path, photos: tuple[str, ...]
) -> None:
    train(teacher_file)
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(UserError, match="tiny is given twice"):
        transfer("tiny", "dcd_runs/tiny", overrides=photos)
    with pytest.raises(UserError, match="no model 'other'"):
        transfer("tiny", "other", overrides=photos)
    with pytest.raises(UserError, match="1 channel and these have 3"):
        transfer("tiny", overrides=(*photos, "data.grey_to_rgb=true"))
    for lr in (0.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"--lr {lr:g}: .* must be finite and above 0"):
            transfer("tiny", overrides=photos, settings=ProbeSettings(lr=lr))
    assert sorted(Path.cwd().rglob("*")) == before


def test_each_fall_of_a_short_probes_learning_rate_is_told_once(
    teacher_file: Path, photos: tuple[str, ...]
) -> None:
    train(teacher_file)
    text = describe_left(transfer("tiny", overrides=photos, settings=ProbeSettings(epochs=2)))
    assert "x0.01 after epoch 1, batch" in text


def test_the_command_prints_a_table_and_says_where_the_probe_is(
    teacher_file: Path, photos: tuple[str, ...]
) -> None:
    train(teacher_file)
    options = [part for override in photos for part in ("--set", override)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "orchestrator", "transfer", "tiny",
         "--data", "imagefolder", *options, "--epochs", "4", "--seeds", "2"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = json.loads(Path("dcd_runs/tiny-to-photos/transfer.json").read_text())
    mean = np.mean([score["test_top1"] for score in values["scores"]])
    assert f"{mean:.2f}" in done.stdout
    assert "x0.1 after epochs 1, 2, 3, batch 64" in done.stdout
    assert f"results  {Path('dcd_runs/tiny-to-photos').absolute()}" in done.stdout


def test_the_command_refuses_a_learning_rate_of_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "transfer", "x", "--data", "digits", "--lr", "0"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: --lr 0: the probes' learning rate must be finite and above 0\n")

"""The example with a network, a checkpoint and images that come from elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from dcd_core.augment import normalize
from examples import option_a_resnet
from orchestrator.experiment_file import load_experiment
from orchestrator.sources import build_student, build_teacher, check_classes, num_parameters
from orchestrator.spec import Normalization

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "cifar10_foreign_teacher.yaml"
FILES = ROOT.parent / "shared" / "cifar10"

needs_files = pytest.mark.skipif(
    not (FILES / "teacher_resnet56.th").exists(),
    reason=f"needs CIFAR-10 as Parquet and the teacher's checkpoint in {FILES}",
)


@pytest.fixture(autouse=True)
def _in_repository_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def overrides() -> list[str]:
    return [
        f"data.path={FILES}/train-*.parquet",
        f"data.test_path={FILES}/test.parquet",
        f"teacher.checkpoint={FILES}/teacher_resnet56.th",
    ]


def read_parquet(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (M, 3, 32, 32) and labels (M,)."""
    table = pq.read_table(path)
    images = [
        np.asarray(Image.open(io.BytesIO(encoded.as_py())).convert("RGB"))
        for encoded in table["image"]
    ]
    labels = torch.tensor(table["label"].to_pylist())
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels


def normalized(images: Tensor, statistics: Normalization | None) -> Tensor:
    assert statistics is not None
    return normalize(images, mean=statistics.mean, std=statistics.std)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)],
)
def test_parameter_counts_are_the_papers(name: str, millions: float) -> None:
    network = getattr(option_a_resnet, name)()
    assert num_parameters(network) / 1e6 == pytest.approx(millions, abs=0.006)


def test_resnet110_has_the_papers_parameters_and_layers() -> None:
    network = option_a_resnet.resnet110(num_classes=7)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert num_parameters(network) / 1e6 == pytest.approx(1.7, abs=0.05)
    assert len(convolutions) + 1 == 110
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = option_a_resnet.BasicBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)  # no residual: the shortcut alone is left
    images = torch.arange(1.0, 33.0).reshape(1, 2, 4, 4)
    expected = torch.zeros(1, 4, 2, 2)
    expected[0, 1] = torch.tensor([[1.0, 3.0], [9.0, 11.0]])
    expected[0, 2] = torch.tensor([[17.0, 19.0], [25.0, 27.0]])
    assert torch.equal(block(images), expected)


def test_the_example_builds_its_two_networks_without_the_checkpoint() -> None:
    experiment = load_experiment(EXAMPLE, ["teacher.checkpoint=null"])
    assert experiment.teacher is not None
    images = torch.rand(2, 3, 32, 32)
    teacher = build_teacher(
        experiment.teacher, num_classes=10, images_example=images, feature_layer=None
    )
    student = build_student(
        experiment.student, num_classes=10, images_example=images, seed=0, feature_layer=None
    )
    assert (teacher.num_classes, teacher.feature_dim) == (10, 64)
    assert num_parameters(student) < num_parameters(teacher) / 2
    assert experiment.scaling.workers == 2
    assert experiment.data.limit == 4000


@needs_files
def test_the_foreign_teacher_scores_83_15_percent_in_fp32_on_the_test_images() -> None:
    experiment = load_experiment(EXAMPLE, overrides())
    assert experiment.teacher is not None
    assert experiment.data.test_path is not None
    images, labels = read_parquet(Path(experiment.data.test_path))
    pixels = normalized(images, experiment.teacher.normalize)
    teacher = build_teacher(
        experiment.teacher, num_classes=10, images_example=pixels[:4], feature_layer=None
    )
    with torch.no_grad():
        predicted = torch.cat(
            [teacher(batch).logits.argmax(dim=1) for batch in torch.split(pixels, 250)]
        )
    assert len(labels) == 2000
    assert 100 * (predicted == labels).double().mean().item() == pytest.approx(83.15, abs=1e-9)
    assert check_classes(teacher, num_classes=10, uses_kd=True) is None

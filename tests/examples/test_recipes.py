"""Each recipe is planned, and makes two steps on random images of its shape."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from torch import Tensor

from orchestrator.distillation import distill
from orchestrator.experiment_file import load_experiment
from orchestrator.inputs import state_digest
from orchestrator.plan import describe_plan
from orchestrator.progress import Display
from orchestrator.student_model import read_package
from orchestrator.transfer.probe import ProbeSettings
from orchestrator.transfer.run import Request, transfer_models

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CIFAR100 = sorted((EXAMPLES / "cifar100").glob("*.yaml"))

# Of the published tables.
PAIRS = {
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
    ("vgg13", "MobileNetV2"),
    ("ResNet50", "MobileNetV2"),
    ("ResNet50", "vgg8"),
    ("resnet32x4", "ShuffleV1"),
    ("resnet32x4", "ShuffleV2"),
    ("wrn_40_2", "ShuffleV1"),
}
TWO_STEPS = [
    "data.val_fraction=0.5",
    "data.limit=32",
    "train.epochs=1",
    "train.batch_size=16",
    "teacher.min_top1=0",
    "scaling.workers=0",
    "scaling.cpus_per_worker=1",
    "tracking.enabled=false",
]


def write_cifar100(root: Path) -> Path:
    """Random images in CIFAR-100's layout, of all its classes."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for file, count in (("train", 200), ("test", 100)):
        content = {
            "data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
            "fine_labels": [row % 100 for row in range(count)],
        }
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
    names = {"fine_label_names": [f"class{label}" for label in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


def test_there_is_a_recipe_for_every_pair_of_the_published_tables() -> None:
    experiments = [load_experiment(path) for path in CIFAR100]
    assert {(e.teacher.source, e.student.source) for e in experiments if e.teacher} == PAIRS
    assert len({experiment.name for experiment in experiments}) == len(PAIRS)
    small = ("MobileNetV2", "ShuffleV1", "ShuffleV2")
    for path, experiment in zip(CIFAR100, experiments, strict=True):
        assert experiment.teacher is not None and experiment.teacher.fit is not None
        assert path.stem == f"{experiment.teacher.source}_{experiment.student.source}"
        assert experiment.optimizer.lr == (0.01 if experiment.student.source in small else 0.05)
        # The published schedule: x0.1 after epochs 150, 180 and 210 of 240.
        for train, schedule in (
            (experiment.train, experiment.schedule),
            (experiment.teacher.fit, experiment.teacher.fit.schedule),
        ):
            assert train.epochs == 240 and train.batch_size == 64
            assert [m * 240 for m in schedule.milestones] == [150, 180, 210]


@pytest.mark.slow
@pytest.mark.parametrize("path", CIFAR100, ids=lambda path: path.stem)
def test_a_recipe_of_the_published_table_makes_two_steps(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = write_cifar100(tmp_path / "cifar100")
    fit = ["teacher.fit.epochs=1", "teacher.fit.batch_size=16"]
    experiment = load_experiment(path, [f"data.path={images}", *TWO_STEPS, *fit])

    text = describe_plan(experiment)
    assert experiment.teacher is not None
    assert experiment.teacher.source in text and experiment.student.source in text

    outcome = distill(experiment, display=Display(Console(file=io.StringIO())))
    result = outcome.folder.read_json("result.json")
    assert result["best_epoch"] == 1
    assert 0 <= result["test/top1"] <= 100


def jpeg(random: np.random.Generator, *, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def write_imagenet(root: Path) -> Path:
    """Random JPEGs of several sizes in ImageNet's layout, of all its classes."""
    random = np.random.default_rng(0)
    images = [jpeg(random, size=(260 + 20 * number, 300)) for number in range(6)]
    for label in range(1000):
        for split, count in (("train", 6 if label < 4 else 1), ("val", 2 if label < 4 else 0)):
            folder = root / split / f"n{label:08}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"n{label:08}_{number}.JPEG").write_bytes(images[number])
    return root


def write_stl10(root: Path) -> Path:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 40)):
        random.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(
            folder / f"{split}_X.bin"
        )
        (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class{n}" for n in range(10)))
    return root


def write_tiny_imagenet(root: Path) -> Path:
    random = np.random.default_rng(0)
    wnids = [f"n{number:08d}" for number in range(10)]
    annotations = []
    (root / "val" / "images").mkdir(parents=True)
    for label, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for number in range(8):
            image = jpeg(random, size=(64, 64))
            (folder / f"{wnid}_{number}.JPEG").write_bytes(image)
        for number in range(4):
            name = f"val_{4 * label + number}.JPEG"
            (root / "val" / "images" / name).write_bytes(jpeg(random, size=(64, 64)))
            annotations.append(f"{name}\t{wnid}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(annotations) + "\n")
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "words.txt").write_text("".join(f"{wnid}\tthing {wnid}\n" for wnid in wnids))
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "student"), [("resnet34", "resnet18"), ("resnet50", "mobilenet_v2")]
)
def test_a_recipe_for_imagenet_makes_two_steps(
    teacher: str,
    student: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    downloaded: Callable[[str, str], dict[str, Tensor]],
) -> None:
    monkeypatch.chdir(tmp_path)
    images = write_imagenet(tmp_path / "imagenet")
    path = EXAMPLES / "imagenet" / f"{teacher}_{student}.yaml"
    given = load_experiment(path)
    assert given.teacher is not None and given.teacher.weights == "IMAGENET1K_V1"
    assert (given.train.epochs, given.train.batch_size) == (120, 256)
    assert (given.optimizer.lr, given.optimizer.weight_decay) == (0.1, 1e-4)
    assert given.schedule.milestones == (30, 60, 90)
    state = downloaded(teacher, "IMAGENET1K_V1")
    overrides = [f"data.path={images}", *TWO_STEPS]
    overrides += ["data.limit=8", "train.batch_size=4", "schedule.milestones=[0.5]"]
    overrides += ["data.val_fraction=0.02"]
    experiment = load_experiment(path, overrides)
    assert f"torchvision:{student}" in describe_plan(experiment)
    outcome = distill(experiment, display=Display(Console(file=io.StringIO())))
    assert outcome.folder.read_json("result.json")["best_epoch"] == 1
    lineage = read_package(outcome.folder.location).lineage
    assert lineage["teacher.sha256"] == state_digest(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write"), [("stl10", write_stl10), ("tiny_imagenet", write_tiny_imagenet)]
)
def test_a_recipe_for_transfer_trains_a_student_and_a_probe(
    name: str,
    write: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    images = f"data.path={write(tmp_path / 'images')}"
    path = EXAMPLES / f"transfer_{name}.yaml"
    steps = [item for item in TWO_STEPS if not item.startswith("teacher.")]
    experiment = load_experiment(path, [images, *steps])
    assert "wrn_16_2" in describe_plan(experiment)
    display = Display(Console(file=io.StringIO()))
    distill(experiment, display=display)

    request = Request(
        models=(experiment.name,),
        data=str(path),
        overrides=(images, "tracking.enabled=false"),
        settings=ProbeSettings(epochs=2),
    )
    (left,) = transfer_models(request, display=display)
    assert left.transfer.image_shape == (3, 32, 32)
    assert "transfer.json" in left.folder.names()

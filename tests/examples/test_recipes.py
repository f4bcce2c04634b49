"""Each recipe is planned, and makes two steps on random images of its shape."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from orchestrator.distillation import distill
from orchestrator.experiment_file import load_experiment
from orchestrator.plan import describe_plan
from orchestrator.progress import Display

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

"""What a run on unbalanced images says of its classes, and on what part of images it is scored."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from tiny_experiment import run_quietly, tiny_experiment

from orchestrator import load_student, read_package
from orchestrator.data import load_dataset
from orchestrator.plan import describe_plan
from orchestrator.summary import describe_outcome

TAIL = {"data.limit": None, "data.imbalance": 6, "data.test_fraction": 0.5, "optimizer.lr": 0.3}


def test_an_unbalanced_run_scores_every_class_and_groups_of_them(
    teacher_file: Path, workplace: Path
) -> None:
    experiment = tiny_experiment(teacher_file, {**TAIL, "train.epochs": 4})

    outcome = run_quietly(experiment)

    metrics = outcome.metrics
    rows = list(csv.DictReader((outcome.folder.read("classes.csv") or b"").decode().splitlines()))
    assert [row["name"] for row in rows] == list("0123456789")
    for column, metric in (("test_top1", "test/top1"), ("teacher_test_top1", "teacher/test_top1")):
        hits = sum(float(row[column]) * int(row["test_images"]) for row in rows)
        total = sum(int(row["test_images"]) for row in rows)
        assert hits / total == pytest.approx(metrics[metric], abs=0.01)
    images = [int(row["train_images"]) for row in rows]
    assert images == sorted(images, reverse=True)
    assert images[0] == pytest.approx(6 * images[-1], abs=3)
    for group in ("many", "medium", "few"):
        own = [float(row["test_top1"]) for row in rows if row["group"] == group]
        assert sum(own) / len(own) == pytest.approx(metrics[f"test/top1_{group}"], abs=0.01)
    assert len({round(metrics[f"test/top1_{group}"]) for group in ("many", "few")}) == 2
    assert f"many {metrics['test/top1_many']:.2f} %, medium" in describe_outcome(
        outcome, experiment
    )


def test_a_plan_names_the_most_and_the_least_frequent_class(
    teacher_file: Path, workplace: Path
) -> None:
    assert "note       classes are unbalanced: " in describe_plan(
        tiny_experiment(teacher_file, TAIL)
    )
    assert "unbalanced" not in describe_plan(tiny_experiment(teacher_file, {"data.limit": None}))


def test_a_balanced_run_has_the_table_and_no_groups(teacher_file: Path, workplace: Path) -> None:
    outcome = run_quietly(tiny_experiment(teacher_file, {"data.limit": None}))

    assert outcome.folder.read("classes.csv") is not None
    assert not [name for name in outcome.metrics if name.endswith(("_many", "_few"))]


def test_students_of_the_imagenet_augmentation_take_and_are_scored_on_the_centre(
    teacher_file: Path, workplace: Path
) -> None:
    updates = {"data.augment": "imagenet", "data.crop_size": 14, "data.resize": 16}
    experiment = tiny_experiment(teacher_file, updates)

    outcome = run_quietly(experiment)

    location = outcome.folder.location
    assert read_package(location).image_shape == (1, 14, 14)
    test = load_dataset(experiment.data).test
    assert test is not None
    centre = torch.from_numpy(test.images)[:, :, 1:15, 1:15]  # of 16 = 14 x 8/7 pixels
    with torch.no_grad():
        answers = load_student(location, with_normalization=True)(centre).argmax(1)
    right = (answers == torch.from_numpy(test.labels)).double().mean().item()
    assert 100 * right == pytest.approx(outcome.metrics["test/top1"])

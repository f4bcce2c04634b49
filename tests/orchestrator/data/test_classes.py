"""Subsets of classes, long tails, and what is said of unbalanced ones."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.data import Dataset, load_dataset
from orchestrator.data.balance import (
    class_counts,
    class_table,
    describe_balance,
    group_metrics,
    shot_groups,
)
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

Write = Callable[..., Path]


def load(**options: Any) -> Dataset:
    return load_dataset(DataSpec(**({"test_fraction": 0.4} | options)))


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(**options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def counts(dataset: Dataset) -> list[int]:
    return class_counts(dataset.train, dataset.num_classes).tolist()


def array(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


# data.classes


@pytest.mark.parametrize("classes", [[7, 1, 3], ["7", "1", "3"], ["7", 1, "3"]])
def test_kept_classes_are_numbered_in_the_order_given(classes: list[str | int]) -> None:
    whole, part = load(), load(classes=classes)

    assert part.class_names == ("7", "1", "3")
    assert part.num_classes == 3
    assert part.test is not None and whole.test is not None
    pairs = ((whole.train, part.train), (whole.val, part.val), (whole.test, part.test))
    for before, after in pairs:
        # Cuts are the same for the images that are left, and so is each image's index.
        kept = np.isin(before.labels, [7, 1, 3])
        assert after.indices.tolist() == before.indices[kept].tolist()
        assert np.array_equal(after.images, before.images[kept])
        assert [(7, 1, 3)[label] for label in after.labels] == before.labels[kept].tolist()


def test_a_given_test_split_keeps_the_same_classes(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path / "train", {"ant": 10, "bee": 10, "cat": 10})
    write_folder(tmp_path / "test", {"ant": 3, "bee": 4, "cat": 5})

    dataset = load(
        source="imagefolder", path=str(tmp_path), test_fraction=None, classes=["cat", "ant"]
    )

    assert dataset.test is not None
    assert np.bincount(dataset.test.labels).tolist() == [5, 3]
    assert dataset.class_names == ("cat", "ant")


def test_classes_that_cannot_be_kept_are_named(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path / "train", {"ant": 10, "bee": 10, "cat": 10})
    write_folder(tmp_path / "test", {"cat": 5})
    folder: dict[str, Any] = {"source": "imagefolder", "path": str(tmp_path), "test_fraction": None}

    assert "'bea': there is no such class; " in refusal(**folder, classes=["ant", "bea"])
    assert "did you mean 'bee'?" in refusal(**folder, classes=["ant", "bea"])
    assert "3: there is no such class" in refusal(**folder, classes=[0, 3])
    assert "-1: there is no such class" in refusal(**folder, classes=[0, -1])
    assert "'ant' names class 0 a second time" in refusal(**folder, classes=[0, "ant"])
    message = refusal(**folder, classes=["ant", "bee"])
    assert message == f"test split of {tmp_path}: no image is of the classes in data.classes"


def test_a_number_that_is_the_name_of_another_class_is_refused(
    tmp_path: Path, write_folder: Write
) -> None:
    write_folder(tmp_path, {"1": 10, "10": 10, "2": 10})
    folder = {"source": "imagefolder", "path": str(tmp_path)}

    assert refusal(**folder, classes=[1, 2]) == (
        "data.classes: 1 is the number of class '10' and the name of another: write '1', in "
        "quotes, for the class of this name (number 0), or '10'"
    )
    assert refusal(**folder, classes=[0, 10]) == (
        "data.classes: 10: there is no class of this number; write '10', in quotes, for the class "
        "of this name (number 1)"
    )
    assert load(**folder, classes=["2", "10"]).class_names == ("2", "10")
    assert load(**folder, classes=[0, "2"]).class_names == ("1", "2")


# data.imbalance


def test_a_long_tail_falls_exponentially_from_the_first_class_to_the_last() -> None:
    even = load(labels_per_class=90)
    dataset = load(imbalance=10)

    smallest = min(np.bincount(load().train.labels))
    expected = [round(smallest * 10 ** (-place / 9)) for place in range(10)]
    assert counts(dataset) == expected
    assert expected[0] == smallest > 9 * expected[-1]
    # The cut takes training images only, and those that a smaller cut by class would keep.
    assert dataset.val.indices.tolist() == even.val.indices.tolist()
    last = dataset.train.indices[dataset.train.labels == 9]
    assert set(last) <= set(even.train.indices)


def test_a_tail_longer_than_the_images_reach_is_refused() -> None:
    assert "data.imbalance 1000 leaves less than one image of the last class" in refusal(
        imbalance=1000
    )


# many, medium and few


def test_groups_are_those_of_the_literature_where_each_has_a_class() -> None:
    groups = shot_groups(array(500, 101, 100, 20, 19, 1, 0))

    assert groups == {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}


def test_thirds_stand_in_where_a_group_would_be_empty() -> None:
    assert shot_groups(array(5, 40, 10, 80, 20, 60, 30)) == {
        "many": [3, 5, 1],
        "medium": [6, 4],
        "few": [2, 0],
    }


def test_a_balanced_split_and_two_classes_have_no_groups() -> None:
    assert shot_groups(array(60, 50, 31)) == {}
    assert shot_groups(array(60, 50, 30)) != {}
    assert shot_groups(array(500, 5)) == {}


def test_a_group_scores_the_mean_of_its_classes_not_of_their_images() -> None:
    groups = {"many": [0, 2], "medium": [1], "few": [3]}

    metrics = group_metrics("test", (90.0, 50.0, 70.0, None), groups)

    assert metrics == {"test/top1_many": 80.0, "test/top1_medium": 50.0}


def test_an_unbalanced_split_is_told_with_its_extremes() -> None:
    assert describe_balance(load()) is None
    text = describe_balance(load(imbalance=10))
    assert text is not None
    first, *_, last = counts(load(imbalance=10))
    assert text == (
        f"classes are unbalanced: {first} training images of '0' and {last} of '9', a ratio of "
        f"{first / last:.3g}"
    )


def test_the_table_of_classes_counts_every_split_and_quotes_names(
    tmp_path: Path, write_folder: Write
) -> None:
    write_folder(tmp_path, {"ant": 50, "bee, wild": 10, "cat": 20})
    dataset = load(source="imagefolder", path=str(tmp_path), test_fraction=0.2)

    table = class_table(dataset, {"test_top1": (50.0, None, 100 / 3)})
    rows = list(csv.DictReader(table.splitlines()))

    assert [row["name"] for row in rows] == ["ant", "bee, wild", "cat"]
    assert [row["train_images"] for row in rows] == ["36", "7", "14"]
    assert [row["val_images"] for row in rows] == ["4", "1", "2"]
    assert [row["test_images"] for row in rows] == ["10", "2", "4"]
    assert [row["group"] for row in rows] == ["many", "few", "medium"]
    assert [row["test_top1"] for row in rows] == ["50.00", "", "33.33"]

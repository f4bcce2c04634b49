"""`data.source: module:function`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import Dataset, load_dataset
from orchestrator.data.sources import read_source
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

MODULE = """
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)

def labels(count):
    return np.arange(count) % 2

def arrays(count=20):
    return pixels(count), labels(count)

def channels_first(count=20):
    return torch.from_numpy(pixels(count).transpose(0, 3, 1, 2).copy()), torch.tensor(labels(count))

def grey(count=20):
    return pixels(count)[..., 0], labels(count)

class Pictures(Dataset):
    classes = ["cat", "dog"]

    def __init__(self, count=20, tensors=False):
        self.count, self.tensors, self.taken = count, tensors, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.taken.append(index)
        image = pixels(self.count)[index]
        if self.tensors:
            return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.tensor(index % 2)
        return Image.fromarray(image), index % 2

class WithTargets(Pictures):
    def __init__(self):
        super().__init__()
        self.targets = [index % 2 for index in range(20)]

REMEMBERED = WithTargets()

def remembered():
    return REMEMBERED

def part(count=20):
    return Subset(Pictures(2 * count), range(count))

def as_list(count=20):
    return list(zip(pixels(count), labels(count).tolist()))

def splits(num_test=6):
    return {"train": arrays(), "test": (pixels(num_test, seed=1), labels(num_test)),
            "class_names": ["a", "b"]}

def wrong(kind):
    return {
        "none": None, "number": 3, "text": "images", "images": pixels(4),
        "floats": (pixels(4) / 255.0, labels(4)), "fewer labels": (pixels(4), labels(3)),
        "float labels": (pixels(4), labels(4) * 1.0), "flat": (pixels(4).reshape(4, -1), labels(4)),
        "no train": {"test": arrays()}, "typo": {"train": arrays(), "tset": arrays()},
        "no pairs": [1, 2, 3], "two lists": (list(pixels(4)), labels(4).tolist()),
        "one name": {"train": arrays(), "class_names": "ab"},
        "names by number": {"train": arrays(), "class_names": {0: "a", 1: "b"}},
        "one number": {"train": arrays(), "class_names": 2},
        "same names": {"train": arrays(), "class_names": ["a", "a"]},
        "named pairs": [{"image": 1, "label": 2}] * 3,
        "normalised": [(torch.zeros(3, 4, 4), n % 2) for n in range(8)],
    }[kind]

def fails():
    raise FileNotFoundError("no /data here")

def ends():
    raise SystemExit("usage: my_images.py FOLDER")
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`my_images` in the working directory."""
    (tmp_path / "my_images.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_images", None)


def load(function: str, **options: Any) -> Dataset:
    source = function if ":" in function else f"my_images:{function}"
    defaults: dict[str, Any] = {"test_fraction": 0.2, "val_fraction": 0.2}
    return load_dataset(DataSpec(**({"source": source} | defaults | options)))


def by_index(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Images (M, H, W, C) and labels of all splits that were cut from one, in its order."""
    assert dataset.test is not None
    splits = (dataset.train, dataset.val, dataset.test)
    order = np.argsort(np.concatenate([split.indices for split in splits]))
    images = np.concatenate([split.images for split in splits])[order]
    return images.transpose(0, 2, 3, 1), np.concatenate([split.labels for split in splits])[order]


@pytest.mark.parametrize(
    "source", ["arrays", "channels_first", "Pictures", "WithTargets", "as_list"]
)
def test_arrays_and_data_sets_of_any_kind_give_the_same_images(source: str) -> None:
    images, labels = by_index(load(source))

    expected = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    assert np.array_equal(images, expected)
    assert labels.tolist() == [0, 1] * 10


def test_grey_arrays_and_tensors_in_a_data_set_are_taken() -> None:
    images, _ = by_index(load("grey"))
    assert images.shape == (20, 6, 5, 1)
    images, labels = by_index(load("Pictures", args={"tensors": True}))
    assert images.shape == (20, 6, 5, 3)
    assert labels.tolist() == [0, 1] * 10
    assert by_index(load("part"))[0].shape == (20, 6, 5, 3)


def test_arguments_reach_the_function_and_class_names_come_from_the_data_set() -> None:
    dataset = load("Pictures", args={"count": 30})

    assert sum(map(len, (dataset.train, dataset.val, dataset.test or ()))) == 30
    assert dataset.class_names == ("cat", "dog")


def test_a_mapping_brings_a_test_split_and_names() -> None:
    dataset = load("splits", test_fraction=None, args={"num_test": 7})

    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (16, 4, 7)
    assert dataset.class_names == ("a", "b")


def test_without_a_test_split_the_two_remedies_are_named() -> None:
    with pytest.raises(UserError) as caught:
        load("arrays", test_fraction=None)

    assert str(caught.value) == (
        "my_images:arrays has no test split: return one under 'test', or set data.test_fraction"
    )


def test_images_of_a_data_set_with_targets_are_only_read_when_they_are_needed() -> None:
    data = read_source(DataSpec(source="my_images:remembered", test_fraction=0.2))

    images = sys.modules["my_images"].REMEMBERED
    assert images.taken == []
    assert len(list(data.train.read(np.array([3, 5])))) == 2
    assert images.taken == [3, 5]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("none", "is a NoneType, where (images, labels), a data set of"),
        ("number", "is a int, where (images, labels)"),
        ("images", "is a ndarray, where (images, labels)"),
        ("text", "item 0: is no pair of an image and a label"),
        ("floats", "image 0: is an array of float64: return uint8 from 0 to 255"),
        ("fewer labels", "labels are int64 (3,) for images (4, 6, 5, 3)"),
        ("float labels", "labels are float64 (4,)"),
        ("flat", "image 0: has shape (90,): return (H, W)"),
        ("no train", "returned a mapping with 'test', where"),
        ("typo", "returned a mapping with 'train', 'tset', where"),
        ("no pairs", "item 0: is no pair of an image and a label"),
        ("two lists", "): return pairs (image, label), or arrays of images and labels"),
        ("one name", "class_names: is a str: return a list of names, such as ['cat', 'dog']"),
        ("names by number", "class_names: is a dict: return a list of names"),
        ("one number", "class_names: is a int: return a list of names"),
        ("same names", "class_names: 'a' is there twice: return unique names"),
        ("named pairs", "the second of each pair must be an integer"),
        ("normalised", "is an array of float32: return uint8 from 0 to 255"),
    ],
)
def test_a_wrong_return_is_one_sentence(kind: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        load("wrong", args={"kind": kind})

    message = str(caught.value)
    assert message.startswith("my_images:wrong")
    assert text in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        ("my_images:fails", {}, "reading images fails: FileNotFoundError: no /data here"),
        ("my_images:ends", {}, "reading images fails: SystemExit: usage: my_images.py FOLDER"),
        ("my_images:array", {}, "did you mean 'arrays'?"),
        ("my_pictures:arrays", {}, "no module 'my_pictures'"),
        ("my_images:arrays", {"args": {"size": 3}}, "it takes (count) and was given (size)"),
    ],
)
def test_a_function_that_cannot_be_called_is_named(
    source: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset(DataSpec(source=source, test_fraction=0.2, **options))

    assert str(caught.value).startswith(f"{source}: ")
    assert text in str(caught.value)


def test_a_module_that_ends_the_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "my_script.py").write_text("import sys\nsys.exit(3)\n")

    with pytest.raises(UserError, match="importing my_script fails: SystemExit: 3"):
        load("my_script:load")


def test_a_class_of_torchvision_is_a_function_too() -> None:
    args = {"size": 30, "image_size": [3, 8, 8], "num_classes": 2}

    dataset = load("torchvision.datasets:FakeData", args=args)

    assert dataset.input_shape == (3, 8, 8)

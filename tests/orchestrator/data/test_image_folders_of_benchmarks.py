"""ImageNet and Tiny ImageNet, in the folders that their archives unpack to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.data import load_dataset
from orchestrator.data.raw import RawImages
from orchestrator.data.sources import read_source
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

Write = Callable[..., Path]


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_source(DataSpec(**options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def grey_values(images: RawImages) -> list[int]:
    """The value of each image, which is one grey; JPEG keeps it within one."""
    files = images.read(np.arange(len(images.labels)))
    return [int(np.asarray(Image.open(file))[0, 0, 0]) for file in files]  # type: ignore[arg-type]


def test_tiny_imagenet_is_read_from_its_original_folder(
    tmp_path: Path, write_tiny_imagenet: Write
) -> None:
    folder = write_tiny_imagenet(tmp_path)

    for path in (tmp_path, folder):
        data = read_source(DataSpec(source="tiny_imagenet", path=str(path)))
        assert data.class_names == ("lemon", "goldfish, Carassius auratus", "bullfrog")
        assert data.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
        expected = [40 * label + image for label in range(3) for image in range(6)]
        assert grey_values(data.train) == pytest.approx(expected, abs=1)
        assert data.train.name(7) == str(folder / "train/n01000000/images/n01000000_1.JPEG")


def test_the_annotated_images_of_tiny_imagenet_are_its_test_split(
    tmp_path: Path, write_tiny_imagenet: Write
) -> None:
    folder = write_tiny_imagenet(tmp_path)
    annotations = folder / "val" / "val_annotations.txt"
    lines = annotations.read_text().splitlines()
    annotations.write_text("\n".join(reversed(lines[1:])))  # in any order, not all of the folder

    data = read_source(DataSpec(source="tiny_imagenet", path=str(folder)))

    assert data.test is not None
    # Image i is of the class i + 1, in turn.
    assert data.test.labels.tolist() == [(image + 1) % 3 for image in (5, 4, 3, 2, 1)]
    assert grey_values(data.test) == pytest.approx([205, 204, 203, 202, 201], abs=1)


def test_an_incomplete_tiny_imagenet_names_what_is_missing(
    tmp_path: Path, write_tiny_imagenet: Write
) -> None:
    folder = write_tiny_imagenet(tmp_path)
    options = {"source": "tiny_imagenet", "path": str(tmp_path)}
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09999999\t0\t0\t1\t1\n")
    message = refusal(**options)
    assert message.startswith(f"{folder}/val/val_annotations.txt line 1: 'n09999999' is no class")

    for image in (folder / "train" / "n02000000" / "images").iterdir():
        image.unlink()
    assert f"{folder}/train/n02000000/images holds no images" in refusal(**options)

    (folder / "words.txt").write_text("n01000000\tgoldfish\nn02000000\tbullfrog\n")
    (folder / "train" / "n02000000" / "images" / "a.JPEG").write_bytes(b"")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01000000\t0\t0\t1\t1\n")
    assert "no line for class 'n03000000'" in refusal(**options)

    (folder / "wnids.txt").unlink()
    assert f"{folder}/wnids.txt does not exist" in refusal(**options)
    assert "gone does not exist" in refusal(source="tiny_imagenet", path=str(tmp_path / "gone"))


def test_the_val_folder_of_imagenet_is_its_test_split(
    tmp_path: Path, write_imagenet: Write
) -> None:
    write_imagenet(tmp_path)

    data = read_source(DataSpec(source="imagenet", path=str(tmp_path)))

    assert data.class_names == ("n01440764", "n01443537")
    assert data.test is not None
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0] * 8 + [1] * 8
    assert data.test.name(9) == str(tmp_path / "val/n01443537/n01443537_1.JPEG")


def test_imagenet_without_its_val_folder_is_refused(tmp_path: Path, write_imagenet: Write) -> None:
    write_imagenet(tmp_path)
    (tmp_path / "val").rename(tmp_path / "validation")

    message = refusal(source="imagenet", path=str(tmp_path))

    assert message.startswith(f"data.path: {tmp_path}/val does not exist: imagenet is a folder")


def test_the_flat_val_folder_of_the_archive_is_refused(
    tmp_path: Path, write_imagenet: Write
) -> None:
    write_imagenet(tmp_path)
    for image in sorted((tmp_path / "val").glob("*/*")):
        image.rename(tmp_path / "val" / image.name)
    for folder in (tmp_path / "val").glob("*/"):
        folder.rmdir()

    message = refusal(source="imagenet", path=str(tmp_path))

    assert message.startswith(f"data.path: {tmp_path}/val holds images and no class folders")
    assert "move each into the folder of its class, val/WNID/" in message


def test_images_of_all_sizes_are_stored_as_their_centre(
    tmp_path: Path, write_imagenet: Write
) -> None:
    write_imagenet(tmp_path)
    options: dict[str, Any] = {"source": "imagenet", "path": str(tmp_path), "val_fraction": 0.25}

    with pytest.raises(UserError, match=r"images differ in size: .* set data.resize"):
        load_dataset(DataSpec(**options))
    dataset = load_dataset(DataSpec(**options, resize=32, resize_by="center_crop"))

    assert dataset.train.images.shape == (12, 3, 32, 32)
    assert (len(dataset.val), dataset.input_shape) == (4, (3, 32, 32))

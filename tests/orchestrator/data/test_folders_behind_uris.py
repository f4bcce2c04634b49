"""Image folders and ImageNet behind a URI, which hold what the same folder here holds."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow.fs import FileSystem, LocalFileSystem, SubTreeFileSystem
from read_sources import everything, read, refusal

from orchestrator.data import ImageSet, StreamedSet, load_dataset
from orchestrator.data.decode import decode_stream
from orchestrator.data.reading import read_tasks
from orchestrator.data.sources import read_source
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

Write = Callable[..., Path]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a store that is not on this machine's file system holds at ``store://bucket``."""

    def from_uri(uri: str) -> tuple[FileSystem, str]:
        store = SubTreeFileSystem(str(tmp_path / "store"), LocalFileSystem())
        return store, uri.partition("?")[0].removeprefix("store://")

    monkeypatch.setattr("orchestrator.data.remote.FileSystem", SimpleNamespace(from_uri=from_uri))
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    return tmp_path / "store" / "bucket"


def write_train_and_test(folder: Path, write_folder: Write) -> None:
    write_folder(folder / "train", {"dog": 2, "ant": 3, "Cat": 1, ".cache": 1})
    write_folder(folder / "train", {"dog/a-b": 1, "dog/a": 1})  # sorted by folder, not as text
    write_folder(folder / "test", {"ant": 2})
    Image.new("L", (2, 2)).save(folder / "train" / "ant" / "UPPER.JPG", "JPEG")
    (folder / "train" / "ant" / "._000.png").write_bytes(b"resource fork")
    (folder / "train" / "notes.txt").write_text("not an image")
    (folder / "train" / "stray.png").write_text("in no class")


@pytest.mark.parametrize("uri", ["file", "store://bucket", "store://bucket/", "store://bucket?k=v"])
def test_an_image_folder_behind_a_uri_holds_the_images_of_the_folder(
    bucket: Path, write_folder: Write, uri: str
) -> None:
    write_train_and_test(bucket, write_folder)
    there = read(source="imagefolder", path=bucket.as_uri() if uri == "file" else uri)
    here = read(source="imagefolder", path=str(bucket))

    assert there.class_names == here.class_names == ("Cat", "ant", "dog")
    where = str(bucket) if uri == "file" else "store://bucket"
    assert there.train.name(3) == f"{where}/train/ant/002.png"
    assert there.test is not None and here.test is not None
    for one, other in ((there.train, here.train), (there.test, here.test)):
        assert one.labels.tolist() == other.labels.tolist()
        assert [image.read_bytes() for image in everything(one)] == [
            image.read_bytes() for image in everything(other)
        ]
        assert one.stored is not None and other.stored is not None
        assert one.stored.digest() == other.stored.digest()


def test_bad_image_folders_behind_a_uri_are_refused(bucket: Path, write_folder: Write) -> None:
    write_folder(bucket / "good", {"ant": 1, "bee": 1})
    write_folder(bucket / "hole", {"ant": 1, "bee": 0})
    (bucket / "none").mkdir()
    (bucket / "file").write_text("")

    def message(name: str, **options: Any) -> str:
        return refusal(source="imagefolder", path=f"store://bucket/{name}", **options)

    assert message("gone").startswith("data.path: store://bucket/gone does not exist")
    assert "store://bucket/file is a file, not a folder" in message("file")
    assert "none holds no class folders" in message("none")
    assert "store://bucket/hole/bee holds no images" in message("hole")
    inside = "data.test_path: store://bucket/good/ant lies in the training folder"
    assert message("good", test_path="store://bucket/good/ant").startswith(inside)
    whole = read(source="imagefolder", path="store://bucket/good", test_path=str(bucket / "good"))
    assert whole.test is not None


def test_imagenet_behind_a_uri_is_read_too(bucket: Path, write_imagenet: Write) -> None:
    write_imagenet(bucket)
    data = read(source="imagenet", path="store://bucket")
    assert data.test is not None
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0] * 8 + [1] * 8

    for image in sorted((bucket / "val").glob("*/*")):
        image.rename(bucket / "val" / image.name)
    for folder in (bucket / "val").glob("*/"):
        folder.rmdir()
    assert "store://bucket/val holds images and no class folders" in refusal(
        source="imagenet", path="store://bucket"
    )


def test_streamed_images_behind_a_uri_are_read_in_any_process(
    bucket: Path, write_folder: Write
) -> None:
    write_folder(bucket, {"ant": 30, "bee": 30})
    options: dict[str, Any] = {"source": "imagefolder", "test_fraction": 0.2, "val_fraction": 0.2}
    held = load_dataset(DataSpec(**options, path="store://bucket", streaming=False))
    streamed = load_dataset(DataSpec(**options, path="store://bucket", streaming=True))
    local = load_dataset(DataSpec(**options, path=str(bucket), streaming=True))

    assert isinstance(streamed.train, StreamedSet)
    assert streamed.fingerprint == local.fingerprint
    tasks = pickle.loads(pickle.dumps(streamed.train.tasks()))
    rows = list(read_tasks(tasks, streamed.train.form, threads=2, memory=2**20))
    images = np.concatenate([part.images for part in rows])
    assert isinstance(held.train, ImageSet)
    assert np.array_equal(images, held.train.images)
    assert (streamed.mean, streamed.std) == (held.mean, held.std)


def test_a_file_that_a_store_does_not_give_ends_the_run_and_is_not_skipped(
    bucket: Path, write_folder: Write
) -> None:
    write_folder(bucket, {"ant": 30, "bee": 30})
    spec = DataSpec(source="imagefolder", path="store://bucket", test_fraction=0.2, on_error="skip")
    data = read_source(spec)
    (bucket / "bee" / "007.png").unlink()

    stream = decode_stream(data.train.read(np.arange(60)), size=None, crop=False, grey_to_rgb=False)
    with pytest.raises(
        UserError, match=r"^data.path: store://bucket/bee/007.png cannot be read \(FileN"
    ):
        list(stream)

"""Small image folders and Parquet files, written as a user's tools would write them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def png(value: int | Sequence[int], *, size: tuple[int, int] = (4, 4)) -> bytes:
    """A PNG of one value (grey) or colour, of a height and width."""
    mode = "L" if isinstance(value, int) else "RGB"
    stream = io.BytesIO()
    colour = value if isinstance(value, int) else tuple(value)
    Image.new(mode, (size[1], size[0]), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    return png


@pytest.fixture
def write_folder() -> Callable[..., Path]:
    """Write `counts` images per class into class folders; image i of a class has grey value i."""

    def write(folder: Path, counts: dict[str, int], **options: Any) -> Path:
        for class_name, count in counts.items():
            (folder / class_name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (folder / class_name / f"{number:03}.png").write_bytes(png(number, **options))
        return folder

    return write


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Write one shard of encoded images and labels."""

    def write(
        path: Path,
        labels: Sequence[Any],
        *,
        images: Sequence[bytes | None] | None = None,
        first_value: int = 0,
        label_type: pa.DataType | None = None,
        metadata: dict[str, str] | None = None,
        row_group_size: int | None = None,
        image_column: str = "image",
    ) -> Path:
        if images is None:
            images = [png((first_value + row) % 256) for row in range(len(labels))]
        schema = pa.schema(
            [(image_column, pa.binary()), ("label", label_type or pa.int64())], metadata=metadata
        )
        table = pa.table([list(images), list(labels)], schema=schema)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=row_group_size)
        return path

    return write


@pytest.fixture
def write_cifar() -> Callable[..., Path]:
    """Write the files of a CIFAR layout with Python 3, `per_file` images each."""
    import pickle

    def write(root: Path, name: str, *, per_file: int = 40) -> Path:
        ten = name == "cifar10"
        folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
        folder.mkdir(parents=True)
        train = [f"data_batch_{number}" for number in range(1, 6)] if ten else ["train"]
        num_classes, label_key = (10, "labels") if ten else (100, "fine_labels")
        for number, file in enumerate([*train, "test_batch" if ten else "test"]):
            random = np.random.default_rng(number)
            content = {
                "data": random.integers(0, 256, (per_file, 3072), dtype=np.uint8),
                label_key: [(number + row) % num_classes for row in range(per_file)],
            }
            (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        meta = {
            "label_names" if ten else "fine_label_names": [
                f"class{label}" for label in range(num_classes)
            ]
        }
        (folder / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta, protocol=2))
        return folder

    return write


@pytest.fixture
def write_stl10() -> Callable[..., Path]:
    """Write torchvision's binary layout of STL-10, without the images that have no labels."""

    def write(root: Path, *, num_train: int = 30, num_test: int = 10) -> Path:
        folder = root / "stl10_binary"
        folder.mkdir(parents=True)
        random = np.random.default_rng(0)
        for split, count in (("train", num_train), ("test", num_test)):
            images = random.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
            images.tofile(folder / f"{split}_X.bin")
            (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
        names = "airplane bird car cat deer dog horse monkey ship truck"
        (folder / "class_names.txt").write_text("\n".join(names.split()) + "\n")
        return folder

    return write


@pytest.fixture
def write_fashion_mnist() -> Callable[..., Path]:
    """Write the four IDX files of Fashion-MNIST, compressed or not."""
    import gzip
    import struct

    def write(folder: Path, *, compressed: bool, num_train: int = 30, num_test: int = 10) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        for prefix, count in (("train", num_train), ("t10k", num_test)):
            images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            labels = (np.arange(count) % 10).astype(np.uint8)
            contents = {
                f"{prefix}-images-idx3-ubyte": struct.pack(">4I", 0x803, *images.shape)
                + images.tobytes(),
                f"{prefix}-labels-idx1-ubyte": struct.pack(">2I", 0x801, count) + labels.tobytes(),
            }
            for name, content in contents.items():
                if compressed:
                    (folder / f"{name}.gz").write_bytes(gzip.compress(content))
                else:
                    (folder / name).write_bytes(content)
        return folder

    return write


@pytest.fixture
def write_tiny_imagenet() -> Callable[..., Path]:
    """Write the folder that tiny-imagenet-200.zip unpacks to, with three classes."""

    def write(root: Path, *, per_class: int = 6) -> Path:
        folder = root / "tiny-imagenet-200"
        # The order of labels is that of the file, not of the names.
        wnids = ["n03000000", "n01000000", "n02000000"]
        (folder / "val" / "images").mkdir(parents=True)
        (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
        words = ["n00000001\tentity", "n01000000\tgoldfish, Carassius auratus"]
        words += ["n02000000\tbullfrog", "n03000000\tlemon"]
        (folder / "words.txt").write_text("\n".join(words) + "\n")
        annotations = []
        for number, wnid in enumerate(wnids):
            images = folder / "train" / wnid / "images"
            images.mkdir(parents=True)
            (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
            for image in range(per_class):
                jpeg(images / f"{wnid}_{image}.JPEG", 40 * number + image, size=(64, 64))
        for image in range(per_class):
            wnid = wnids[(image + 1) % 3]
            jpeg(folder / "val" / "images" / f"val_{image}.JPEG", 200 + image, size=(64, 64))
            annotations.append(f"val_{image}.JPEG\t{wnid}\t0\t0\t62\t62\n")
        (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
        (folder / "test" / "images").mkdir(parents=True)
        jpeg(folder / "test" / "images" / "test_0.JPEG", 0, size=(64, 64))
        return folder

    return write


def jpeg(path: Path, value: int, *, size: tuple[int, int]) -> None:
    """A JPEG of one grey value in colour, of a height and width."""
    Image.new("RGB", (size[1], size[0]), (value, value, value)).save(path, "JPEG", quality=95)


@pytest.fixture
def write_imagenet() -> Callable[..., Path]:
    """Write train and val with class folders of JPEGs whose sizes differ."""

    def write(root: Path, *, per_class: int = 8) -> Path:
        for split in ("train", "val"):
            for label, wnid in enumerate(("n01440764", "n01443537")):
                folder = root / split / wnid
                folder.mkdir(parents=True)
                for image in range(per_class):
                    size = (40 + 7 * image, 90 - 5 * image)
                    jpeg(folder / f"{wnid}_{image}.JPEG", 100 * label + image, size=size)
        return root

    return write

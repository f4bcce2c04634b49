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

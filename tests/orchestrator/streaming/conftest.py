"""Small sets whose images tell which they are, and processes that share them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "dcd_core"))  # for the pool of processes

from rank_pool import RankPool


@pytest.fixture(scope="session")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    """Three processes in a gloo process group, started once."""
    pool = RankPool(3, store=tmp_path_factory.mktemp("ranks") / "store")
    yield pool
    pool.close()


def numbered_png(number: int) -> bytes:
    """A grey PNG, 2x4, whose pixels are a number's bytes."""
    stream = io.BytesIO()
    pixels = np.frombuffer(int(number).to_bytes(8, "little"), dtype=np.uint8).reshape(2, 4)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def numbered_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Write shards whose row groups have the sizes given; image i shows i and has label i % 3."""

    def write(*shards: Sequence[int], broken: Sequence[int] = ()) -> Path:
        folder, start = tmp_path / "parquet", 0
        folder.mkdir(exist_ok=True)
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
        for number, sizes in enumerate(shards):
            with pq.ParquetWriter(folder / f"{number}.parquet", schema) as writer:
                for size in sizes:
                    rows = range(start, start + size)
                    images = [b"?" if row in broken else numbered_png(row) for row in rows]
                    labels = [row % 3 for row in rows]
                    writer.write_table(
                        pa.table([images, labels], schema=schema), row_group_size=max(size, 1)
                    )
                    start += size
        return folder

    return write


@pytest.fixture
def numbered_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write three classes of files; image i, in the order of class, then name, shows i."""

    def write(num_images: int, *, broken: Sequence[int] = ()) -> Path:
        folder = tmp_path / "folder"
        for number in range(num_images):
            class_folder = folder / f"class{number * 3 // num_images}"
            class_folder.mkdir(parents=True, exist_ok=True)
            content = b"?" if number in broken else numbered_png(number)
            (class_folder / f"{number:06}.png").write_bytes(content)
        return folder

    return write

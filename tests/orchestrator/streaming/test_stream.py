from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from orchestrator.data import StreamedSet, load_dataset
from orchestrator.data.reading import Rows, read_tasks
from orchestrator.data.sources import SOURCES
from orchestrator.data.tasks import Task
from orchestrator.errors import UserError
from orchestrator.reporter import Ranks
from orchestrator.spec import DataSpec
from orchestrator.streaming.agreement import agreed_counts
from orchestrator.streaming.opening import open_split
from orchestrator.streaming.stream import Batch, Stream

GIB_OF_60_IMAGES = 2 * 60 * 8 / 2**30
"""Half of it, the window, holds 60 images of 8 bytes."""


def spec(path: Path, **options: Any) -> DataSpec:
    source = "parquet" if path.name == "parquet" else "imagefolder"
    values = {"test_fraction": 0.2, "streaming": True, "memory_gib": GIB_OF_60_IMAGES}
    return DataSpec(source=source, path=str(path), **(values | options))


def training_set(path: Path, **options: Any) -> StreamedSet:
    split = load_dataset(spec(path, **options)).train
    assert isinstance(split, StreamedSet)
    return split


ALONE = Ranks()


def streamed(split: StreamedSet, ranks: Ranks = ALONE) -> Stream:
    stream = open_split(split, ranks, on_ray=False)
    assert isinstance(stream, Stream)
    return stream


def numbers(images: torch.Tensor) -> list[int]:
    """Which images these are, by their pixels."""
    return images.reshape(len(images), 8).numpy().view("<i8").ravel().tolist()


def order(split: StreamedSet, *, epoch: int, seed: int = 0, batch_size: int = 16) -> list[int]:
    batches = streamed(split).epoch(epoch, seed=seed, batch_size=batch_size)
    return [number for batch in batches for number in batch.indices.tolist()]


@pytest.fixture(params=["parquet", "folder"])
def path(
    request: pytest.FixtureRequest,
    numbered_parquet: Callable[..., Path],
    numbered_folder: Callable[..., Path],
) -> Path:
    if request.param == "folder":
        return numbered_folder(500)
    return numbered_parquet((90, 7, 300), (1, 0, 2), (100,))


def test_an_epoch_brings_each_image_of_the_split_once(path: Path) -> None:
    split = training_set(path)
    batches = list(streamed(split).epoch(1, seed=0, batch_size=16))
    assert [sum(batch.counts) for batch in batches] == [16] * (len(split) // 16) + [len(split) % 16]
    indices = torch.cat([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == split.indices.tolist()
    images = torch.cat([batch.images for batch in batches])
    assert numbers(images) == indices.tolist()
    label_of = dict(zip(split.indices.tolist(), split.labels.tolist(), strict=True))
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == [label_of[index] for index in indices.tolist()]


def test_splits_are_those_of_images_that_are_held(path: Path) -> None:
    for options in ({}, {"limit": 100}, {"labels_per_class": 20}, {"split_seed": 3}):
        there = load_dataset(spec(path, **options))
        held = load_dataset(spec(path, streaming=False, **options))
        for name in ("train", "val", "test"):
            one, other = getattr(there, name), getattr(held, name)
            assert one.indices.tolist() == other.indices.tolist()
            assert one.labels.tolist() == other.labels.tolist()
            images = [batch for batch, _ in streamed(one).batches(Ranks(), 7)]
            assert torch.equal(torch.cat(images), torch.tensor(other.images))
            assert len(images) == math.ceil(len(one) / 7)
            assert {len(batch) for batch in images[:-1]} == {7}
        assert there.mean == held.mean
        assert there.std == held.std


def test_the_order_depends_on_seed_and_epoch(path: Path) -> None:
    split = training_set(path)
    assert order(split, epoch=1) == order(split, epoch=1)
    assert order(split, epoch=1) != order(split, epoch=2)
    assert order(split, epoch=1) != order(split, epoch=1, seed=1)


def test_images_of_all_parts_come_early(path: Path) -> None:
    # Of the first hundred images, some come from each quarter of the source.
    split = training_set(path, memory_gib=2 * GIB_OF_60_IMAGES)
    early = [0, 0, 0, 0]
    for epoch in range(1, 21):
        for index in order(split, epoch=epoch)[:100]:
            early[index // 125] += 1
    assert min(early) > 100


def test_shares_of_ranks_are_apart_and_even(path: Path) -> None:
    split = training_set(path)
    for num_ranks in (2, 3, 7):
        shares = [
            np.concatenate([t.indices for t in split.tasks(rank=r, num_ranks=num_ranks, order=o)])
            for o in (None, (0, 1))
            for r in range(num_ranks)
        ]
        for own in (shares[:num_ranks], shares[num_ranks:]):
            assert sorted(np.concatenate(own).tolist()) == split.indices.tolist()
            assert max(map(len, own)) - min(map(len, own)) <= 1


def test_a_row_group_is_read_by_as_few_tasks_as_can_be(
    numbered_parquet: Callable[..., Path],
) -> None:
    split = training_set(numbered_parquet((400, 400), (50,) * 16))
    tasks = split.tasks(order=(0, 1))
    parts = [set(np.searchsorted(split.stored.starts, t.indices, side="right")) for t in tasks]
    assert sum(map(len, parts)) == 18  # no row group in two tasks
    assert len(tasks) < 8  # small ones together


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_broken_image_is_named_or_skipped(
    numbered_parquet: Callable[..., Path],
    on_error: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # More images than are looked at beforehand, so that the first epoch finds them.
    path = numbered_parquet((3000, 3000), broken=range(10, 2990))
    split = training_set(path, limit=4200, on_error="skip", memory_gib=0.001)
    good = [i for i in split.indices.tolist() if not 10 <= i < 2990]
    if on_error == "skip":
        with caplog.at_level(logging.WARNING):
            stream = streamed(split)
            batches = list(stream.epoch(1, seed=0, batch_size=50))
        seen = torch.cat([batch.indices for batch in batches])
        assert sorted(seen.tolist()) == good
        assert {sum(batch.counts) for batch in batches[:-1]} == {50}
        assert stream.metrics() == {"data/skipped": len(split) - len(good)}
        assert "0.parquet row" in caplog.text
        assert caplog.text.count("skipped: ") == 3
        return
    failing = StreamedSet(**{**vars(split), "on_error": "fail"})
    with pytest.raises(UserError, match=r"0\.parquet row \d+: .*set data\.on_error to 'skip'"):
        list(streamed(failing).epoch(1, seed=0, batch_size=50))
    with pytest.raises(UserError, match=r"set data\.on_error to 'skip'"):
        load_dataset(spec(path, limit=4200))


def test_an_image_of_another_size_is_refused_even_where_broken_ones_are_skipped(
    numbered_folder: Callable[..., Path],
) -> None:
    path = numbered_folder(60)
    Image.new("L", (5, 2)).save(path / "class1" / "000031.png")
    options = {"on_error": "skip", "test_fraction": 0.02, "val_fraction": 0.02}
    with pytest.raises(UserError, match=r"000031\.png: is 1x2x5 and the first image 1x2x4.*resize"):
        load_dataset(spec(path, **options))


def test_a_file_that_has_gone_is_named(numbered_parquet: Callable[..., Path]) -> None:
    path = numbered_parquet((200,), (200,))
    split = training_set(path, on_error="skip")
    (path / "1.parquet").unlink()
    with pytest.raises(UserError, match=r"1\.parquet cannot be read"):
        list(streamed(split).epoch(1, seed=0, batch_size=16))


class _Endless(NamedTuple):
    """A reader that counts what has been asked of it."""

    image: bytes
    asked: list[int]

    def read(self) -> Iterator[bytes]:
        for number in range(100_000):
            self.asked[0] = number + 1
            yield self.image


def test_reading_stays_ahead_by_no_more_than_its_memory(
    numbered_parquet: Callable[..., Path],
) -> None:
    split = training_set(numbered_parquet((60,)))
    asked = [0]
    positions = np.arange(100_000)
    image = next(split.tasks()[0].reader.read())
    assert isinstance(image, bytes)
    task = Task(_Endless(image, asked), positions, positions)
    given = 0
    for rows in read_tasks([task], split.form, threads=2, memory=400 * split.form.num_bytes):
        given += len(rows.labels)
        assert asked[0] - given <= 200 + 64  # half of it is being decoded, in turns of 32
        if given > 5000:
            break


def test_a_row_group_is_not_in_memory_as_a_whole(tmp_path: Path) -> None:
    # One row group of 64 MB: 2,000 "images" of 32 kB that do not compress.
    noise = np.random.default_rng(0).integers(0, 256, (2000, 32_000), dtype=np.uint8)
    table = pa.table({"image": [row.tobytes() for row in noise], "label": [0, 1] * 1000})
    path = tmp_path / "parquet"
    path.mkdir()
    pq.write_table(
        table,
        path / "0.parquet",
        compression="none",
        use_dictionary=False,
        write_batch_size=32,  # or a page, which is read as a whole, has a thousand rows
    )
    del table
    assert pq.ParquetFile(path / "0.parquet").num_row_groups == 1
    stored = SOURCES["parquet"](spec(path)).train.stored
    assert stored is not None
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for number, image in enumerate(stored.reader(np.arange(2000)).read()):
        assert image == noise[number].tobytes()
        most = max(most, pool.bytes_allocated() - before)
    assert most < 16e6


@pytest.mark.parametrize(
    ("offers", "num_images", "counts"),
    [
        ([8, 8], 8, [4, 4]),
        ([8, 8, 8], 8, [3, 3, 2]),
        ([8, 1], 8, [7, 1]),
        ([0, 8, 8], 8, [0, 4, 4]),
        ([2, 8, 3], 8, [2, 3, 3]),
        ([1, 0, 2], 8, [1, 0, 2]),
        ([0, 0], 8, [0, 0]),
    ],
)
def test_ranks_give_as_evenly_as_they_can(
    offers: list[int], num_images: int, counts: list[int]
) -> None:
    assert agreed_counts(offers, num_images) == counts


def _epoch_of_rank(rank: int, group: None, split: StreamedSet, batch_size: int) -> Any:
    """In a process of the pool: this rank's images by batch and all counts, or the error."""
    stream = streamed(split, Ranks(rank=rank, size=3))
    try:
        batches: list[Batch] = list(stream.epoch(1, seed=0, batch_size=batch_size))
        scored = [n for _, labels in stream.batches(Ranks(rank, 3), 50) for n in labels.tolist()]
    except UserError as error:
        return str(error)
    return [(b.indices.tolist(), b.counts) for b in batches], scored, stream.metrics()


def test_three_ranks_have_the_same_batches_though_one_skips_most_of_its_images(
    three_ranks: Any, numbered_parquet: Callable[..., Path]
) -> None:
    path = numbered_parquet((400, 400, 400), broken=range(20, 390))
    split = training_set(path, on_error="skip")
    answers = three_ranks.run(3, _epoch_of_rank, split, 30)
    counts = [[count for _, count in batches] for batches, _, _ in answers]
    assert counts[0] == counts[1] == counts[2]
    assert {sum(count) for count in counts[0][:-1]} == {30}
    assert counts[0][0] == [10, 10, 10]
    assert len({tuple(count) for count in counts[0]}) > 2  # some ranks ran out before others
    for rank, (batches, _, _) in enumerate(answers):
        assert [len(indices) for indices, _ in batches] == [count[rank] for count in counts[0]]
    seen = [index for batches, _, _ in answers for indices, _ in batches for index in indices]
    good = [i for i in split.indices.tolist() if not 20 <= i < 390]
    assert sorted(seen) == good
    assert [n for _, labels, _ in answers for n in labels] == [i % 3 for i in good]
    assert {m["data/skipped"] for *_, m in answers} == {len(split) - len(good)}


def test_what_one_rank_cannot_read_ends_all(
    three_ranks: Any, numbered_parquet: Callable[..., Path]
) -> None:
    path = numbered_parquet((300, 300, 300), broken=[450])
    options = {"test_fraction": 0.01, "val_fraction": 0.01, "on_error": "skip"}
    split = StreamedSet(**{**vars(training_set(path, **options)), "on_error": "fail"})
    assert 450 in split.indices
    answers = three_ranks.run(3, _epoch_of_rank, split, 30)
    (message,) = set(answers)
    assert message.startswith("0.parquet row 450: cannot be decoded")


def _no_rows(tasks: Sequence[Task], split: StreamedSet) -> Iterator[Rows]:
    return iter(())


def test_an_epoch_without_images_has_no_batches(path: Path) -> None:
    stream = Stream(training_set(path), Ranks(), read=_no_rows)
    assert list(stream.epoch(1, seed=0, batch_size=4)) == []


def test_an_imagenet_folder_is_streamed_as_it_is_held(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for wnid in ("n01", "n02"):
            folder = tmp_path / split / wnid
            folder.mkdir(parents=True)
            for number in range(10):
                pixels = random.integers(0, 256, (20 + number, 30 - number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    values = {"source": "imagenet", "path": str(tmp_path), "resize": 16, "crop_size": 12}
    values |= {"resize_by": "center_crop", "augment": "imagenet", "val_fraction": 0.2}
    held, streamed_too = (
        load_dataset(DataSpec(streaming=streaming, **values)) for streaming in (False, True)
    )
    assert streamed_too.input_shape == held.input_shape == (3, 12, 12)
    for name in ("train", "val", "test"):
        whole, split = getattr(held, name), getattr(streamed_too, name)
        images, labels = zip(*streamed(split).batches(ALONE, 7), strict=True)
        assert np.array_equal(torch.cat(images).numpy(), whole.images)
        assert np.array_equal(torch.cat(labels).numpy(), whole.labels)

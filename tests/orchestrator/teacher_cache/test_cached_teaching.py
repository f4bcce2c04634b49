"""A teacher whose answers are kept: the same as without, and computed once."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny_networks
import torch
from pyarrow.fs import FileSystem
from torch import Tensor

from dcd_core import FeatureModel, FrozenTeacher, crop_flip, sample_order
from orchestrator.batches import Needs, Recipe, prepare, select
from orchestrator.errors import UserError
from orchestrator.evaluation import Images, PixelStatistics
from orchestrator.places import CachePlace
from orchestrator.reporter import Ranks
from orchestrator.storage import Folder
from orchestrator.teacher_cache import teaching as module
from orchestrator.teacher_cache.cache import Cache, Key
from orchestrator.teacher_cache.shelf import Piece, Shelf
from orchestrator.teacher_cache.tables import Mapped, Resident, Table
from orchestrator.teacher_cache.teaching import CachedTeaching
from orchestrator.teaching import Answers, LiveTeaching, Teaching

NUM_IMAGES, BATCH = 210, 20
PIXELS = PixelStatistics((0.5,), (0.25,))
KEY = Key({"teacher": "tiny", "dtype": "fp32"})


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", 2 * BATCH)
    monkeypatch.setattr(module, "CHUNKS", NUM_IMAGES)
    monkeypatch.setattr(module, "warned", set())


class Counting(LiveTeaching):
    """Counts the images that its teacher is run on; waits before each batch if told to."""

    def __init__(self, wait: Callable[[], Any] = lambda: None) -> None:
        torch.manual_seed(0)
        example = torch.rand(2, 1, 8, 8)
        model = FeatureModel(tiny_networks.network(10, width=5), images_example=example)
        super().__init__(FrozenTeacher(model, images_example=example), pixels=PIXELS)
        self.count = 0
        self._wait = wait

    def run(self, images: Tensor) -> Answers:
        self._wait()
        self.count += len(images)
        return super().run(images)


def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    return Images(
        torch.randint(256, (NUM_IMAGES, 1, 8, 8), generator=generator, dtype=torch.uint8),
        torch.zeros(NUM_IMAGES, dtype=torch.int64),
        torch.arange(NUM_IMAGES) * 3 + 1,
    )


def recipe(*, batch_size: int = BATCH, accumulate: int = 1, views: int | None = None) -> Recipe:
    return Recipe(
        epochs=4,
        batch_size=batch_size,
        accumulate=accumulate,
        precision=torch.float32,
        memory_format=torch.contiguous_format,
        max_grad_norm=None,
        seed=0,
        data_seed=5,
        augment=lambda x, i, view: crop_flip(x, seed=5, epoch=view, indices=i, padding=1),
        lr_factor=lambda epoch: 1.0,
        student_pixels=PIXELS,
        views=views,
    )


def cached(
    live: LiveTeaching,
    place: str | Path,
    *,
    how: Recipe | None = None,
    ranks: Ranks | None = None,
    dtype: torch.dtype = torch.float32,
    max_bytes: int | None = None,
) -> CachedTeaching:
    how = how or recipe()
    live.dtype = dtype
    return CachedTeaching(
        live,
        Cache(CachePlace(str(place), max_bytes), KEY),
        training=images(),
        recipe=how,
        ranks=ranks or Ranks(),
        own_rows=how.views is None,
    )


def epoch_of(
    teaching: Teaching, epoch: int, *, how: Recipe | None = None, ranks: Ranks | None = None
) -> tuple[Tensor, Tensor]:
    """All that a rank learns from in an epoch: logits and features, in order."""
    how = how or recipe()
    training = images()
    teaching.begin(epoch)
    needs = Needs(takes_features=True, features=True, logits=True)
    logits, features = [], []
    order = sample_order(how.data_seed, epoch, training.indices)
    for step, batch in enumerate(order.split(how.batch_size)):
        for selection in select(
            batch,
            teaching,
            place=step * how.batch_size,
            training=training,
            recipe=how,
            ranks=ranks or Ranks(),
            needs=needs,
        ):
            micro = prepare(selection, teaching, view=how.view(epoch), recipe=how, needs=needs)
            assert micro.teacher_logits is not None and micro.teacher_features is not None
            logits.append(micro.teacher_logits)
            features.append(micro.teacher_features)
    return torch.cat(logits), torch.cat(features)


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def close(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_kept_answers_equal_computed_ones_bit_for_bit(tmp_path: Path, accumulate: int) -> None:
    how = recipe(accumulate=accumulate)
    for epoch in (1, 2):
        live = epoch_of(Counting(), epoch, how=how)
        writer, reader = Counting(), Counting()
        assert same(epoch_of(cached(writer, tmp_path, how=how), epoch, how=how), live)
        assert same(epoch_of(cached(reader, tmp_path, how=how), epoch, how=how), live)
        assert (writer.count, reader.count) == (NUM_IMAGES, 0)
    assert not same(epoch_of(Counting(), 1), epoch_of(Counting(), 2))


def test_one_teaching_goes_from_epoch_to_epoch(tmp_path: Path) -> None:
    own = cached(Counting(), tmp_path)
    for epoch in (1, 2, 3, 1):
        assert same(epoch_of(own, epoch), epoch_of(Counting(), epoch))


def test_it_tells_how_much_it_has_read(tmp_path: Path) -> None:
    first = cached(Counting(), tmp_path)
    epoch_of(first, 1)
    assert first.metrics() == {"time/teacher_cached_percent": 0}
    second = cached(Counting(), tmp_path)
    epoch_of(second, 1)
    assert second.metrics() == {"time/teacher_cached_percent": 100}


@pytest.mark.parametrize("batch_size", [7, 30, 64, NUM_IMAGES])
def test_another_batch_size_reads_the_same_rows(tmp_path: Path, batch_size: int) -> None:
    epoch_of(cached(Counting(), tmp_path), 1)
    how = recipe(batch_size=batch_size)
    reader = Counting()
    found = epoch_of(cached(reader, tmp_path, how=how), 1, how=how)
    assert reader.count == 0
    close(found, epoch_of(Counting(), 1, how=how))


@pytest.mark.parametrize(("writers", "readers"), [(1, 4), (4, 1), (2, 3), (4, 4)])
def test_what_some_workers_wrote_serves_others(tmp_path: Path, writers: int, readers: int) -> None:
    count = 0
    for rank in range(writers):
        writer = Counting()
        ranks = Ranks(rank=rank, size=writers)
        live = epoch_of(Counting(), 1, ranks=ranks)
        assert same(epoch_of(cached(writer, tmp_path, ranks=ranks), 1, ranks=ranks), live)
        count += writer.count
    assert count == NUM_IMAGES  # each has made its own rows
    for rank in range(readers):
        reader = Counting()
        ranks = Ranks(rank=rank, size=readers)
        found = epoch_of(cached(reader, tmp_path, ranks=ranks), 1, ranks=ranks)
        assert reader.count == 0
        live = epoch_of(Counting(), 1, ranks=ranks)
        close(found, live)
        if writers == readers:
            assert same(found, live)


@pytest.mark.parametrize("other", [{"accumulate": 2}, {"batch_size": 2 * BATCH}], ids=str)
def test_workers_that_share_batches_otherwise_wait_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, int]
) -> None:
    """Of a chunk that is cut alike, a rank has other rows then."""
    monkeypatch.setattr(module, "PATIENCE_S", 1e-9)
    epoch_of(cached(Counting(), tmp_path, ranks=Ranks(0, 2)), 1, ranks=Ranks(0, 2))
    how = recipe(**other)
    for rank in (1, 0):
        ranks = Ranks(rank, 2)
        live = Counting()
        own = cached(live, tmp_path, how=how, ranks=ranks)
        close(
            epoch_of(own, 1, how=how, ranks=ranks),
            epoch_of(Counting(), 1, how=how, ranks=ranks),
        )
        again = Counting()
        epoch_of(cached(again, tmp_path, how=how, ranks=ranks), 1, how=how, ranks=ranks)
        assert again.count == 0  # all was kept


def test_a_piece_that_lacks_rows_is_made_again(tmp_path: Path) -> None:
    """Of whatever origin: nobody may wait for what nobody makes."""
    cache = Cache(CachePlace(str(tmp_path), None), KEY)
    rows = module.Rows(torch.arange(3), torch.zeros(3, 10), torch.zeros(3, 6))
    assert cache.keep(Piece(1, 0, 2 * BATCH), rows)
    live = Counting()
    epoch_of(cached(live, tmp_path), 1)
    assert live.count == NUM_IMAGES
    again = Counting()
    epoch_of(cached(again, tmp_path), 1)
    assert again.count == 0


def test_more_workers_than_images_in_the_last_batch(tmp_path: Path) -> None:
    """Some hold no row of it."""
    how = recipe(batch_size=208)  # 2 images are left for 4 workers
    for rank in range(4):
        ranks = Ranks(rank=rank, size=4)
        live = epoch_of(Counting(), 1, how=how, ranks=ranks)
        for _ in range(2):
            found = cached(Counting(), tmp_path, how=how, ranks=ranks)
            assert same(epoch_of(found, 1, how=how, ranks=ranks), live)


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    results: dict[int, Any] = {}

    def run(number: int) -> None:
        results[number] = functions[number]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[number] for number in range(len(functions))]


def test_trials_in_lockstep_compute_each_epoch_once_between_them(tmp_path: Path) -> None:
    barrier = threading.Barrier(3, timeout=30)
    trials = [Counting() for _ in range(3)]

    def trial(live: Counting) -> list[tuple[Tensor, Tensor]]:
        own = cached(live, tmp_path)
        found = []
        for epoch in (1, 2, 3):
            barrier.wait()
            found.append(epoch_of(own, epoch))
        return found

    results = in_threads(*(lambda live=live: trial(live) for live in trials))
    for epoch in (1, 2, 3):
        live = epoch_of(Counting(), epoch)
        assert all(same(result[epoch - 1], live) for result in results)
    assert sum(trial.count for trial in trials) == 3 * NUM_IMAGES


def test_who_finds_a_chunk_taken_makes_the_next(tmp_path: Path) -> None:
    """The first trial gets stuck in its first chunk; the second meanwhile makes all others."""
    entered, go_on = threading.Event(), threading.Event()

    def stuck() -> None:
        entered.set()
        go_on.wait(30)

    slow, fast = Counting(stuck), Counting()

    def second() -> Any:
        entered.wait(30)
        threading.Timer(1.0, go_on.set).start()
        return epoch_of(cached(fast, tmp_path), 1)

    first_found, second_found = in_threads(lambda: epoch_of(cached(slow, tmp_path), 1), second)
    assert same(first_found, second_found)
    assert slow.count == 2 * BATCH
    assert fast.count == NUM_IMAGES - 2 * BATCH


def test_a_chunk_that_never_comes_is_computed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was halted in the middle holds its lease for ever."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    entered, go_on = threading.Event(), threading.Event()

    def halted() -> None:
        entered.set()
        go_on.wait(30)

    live = Counting()

    def second() -> Any:
        entered.wait(30)
        found = epoch_of(cached(live, tmp_path), 1)
        go_on.set()
        return found

    _, found = in_threads(lambda: epoch_of(cached(Counting(halted), tmp_path), 1), second)
    assert same(found, epoch_of(Counting(), 1))
    assert live.count == NUM_IMAGES


def test_a_worker_without_rows_waits_for_nobody(tmp_path: Path) -> None:
    """Two images are left for four workers in the last chunk, and all chunks are being made."""
    how = recipe(batch_size=208)
    held = Cache(CachePlace(str(tmp_path), None), KEY)
    ranks = Ranks(rank=3, size=4)
    with contextlib.ExitStack() as leases:
        leases.enter_context(held.lease(Piece(1, 0, 208, 3, 4, 208)))
        timer = threading.Timer(0.5, leases.close)
        timer.start()
        found = epoch_of(
            cached(Counting(), tmp_path, how=how, ranks=ranks), 1, how=how, ranks=ranks
        )
        timer.join()
    assert same(found, epoch_of(Counting(), 1, how=how, ranks=ranks))


FAILURES = [
    PermissionError(13, "Permission denied"),
    OSError(5, "Input/output error"),
    ConnectionError("503 slow down"),
    pa.ArrowInvalid("what is this"),
    UserError("s3://bucket: not a URI that pyarrow opens"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("method", ["has", "pieces", "write", "use", "lease", "path"])
def test_whatever_fails_training_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    failure: Exception,
) -> None:
    epoch_of(cached(Counting(), tmp_path), 1)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise failure

    monkeypatch.setattr(Shelf, method, fail)
    own = cached(Counting(), tmp_path)
    for epoch in (1, 2, 3):
        assert same(epoch_of(own, epoch), epoch_of(Counting(), epoch))
    assert len(caplog.records) <= 1


def test_a_file_that_cannot_be_read_now_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch_of(cached(Counting(), tmp_path), 1)
    before = arrow_files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "orchestrator.teacher_cache.rows.pa.memory_map",
            lambda path: (_ for _ in ()).throw(OSError(24, "Too many open files")),
        )
        assert same(epoch_of(cached(Counting(), tmp_path), 1), epoch_of(Counting(), 1))
    assert arrow_files(tmp_path) == before
    again = Counting()
    epoch_of(cached(again, tmp_path), 1)
    assert again.count == 0


def test_a_cache_that_is_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    own = cached(Counting(), tmp_path)
    epoch_of(own, 1)
    shutil.rmtree(tmp_path)
    for epoch in (2, 1):
        assert same(epoch_of(own, epoch), epoch_of(Counting(), epoch))
    assert arrow_files(tmp_path)


def arrow_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.arrow"))


@pytest.mark.parametrize("damage", ["torn", "altered", "swapped", "empty"])
def test_a_damaged_file_is_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    epoch_of(cached(Counting(), tmp_path), 1)
    first, second, *_ = arrow_files(tmp_path)
    content = bytearray(first.read_bytes())
    if damage == "torn":
        content = content[: len(content) // 2]
    elif damage == "altered":
        content[len(content) // 2] ^= 255
    elif damage == "swapped":  # a whole file, of other images
        content = bytearray(second.read_bytes())
    else:
        content = bytearray()
    first.write_bytes(content)
    live = Counting()
    assert same(epoch_of(cached(live, tmp_path), 1), epoch_of(Counting(), 1))
    assert live.count == 2 * BATCH
    assert str(first) in caplog.text
    again = Counting()
    epoch_of(cached(again, tmp_path), 1)
    assert again.count == 0


def test_a_full_disk_means_computing_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = cached(Counting(), tmp_path)
    epoch_of(own, 1)
    monkeypatch.setattr(
        "orchestrator.storage.Folder.write", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    live = Counting()
    late = cached(live, tmp_path)
    for epoch in (1, 2, 3):
        assert same(epoch_of(late, epoch), epoch_of(Counting(), epoch))
    assert live.count == 2 * NUM_IMAGES  # the first epoch was there to read
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "full" in warnings[0].getMessage()


def test_a_place_that_is_no_folder_means_computing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert same(epoch_of(cached(Counting(), tmp_path / "file"), 1), epoch_of(Counting(), 1))


def test_the_budget_is_kept_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    epoch_of(cached(Counting(), tmp_path), 1)
    size = sum(path.stat().st_size for path in arrow_files(tmp_path))
    own = cached(Counting(), tmp_path, max_bytes=int(1.5 * size))
    for epoch in (1, 2, 3):
        assert same(epoch_of(own, epoch), epoch_of(Counting(), epoch))
        assert sum(path.stat().st_size for path in arrow_files(tmp_path)) <= 1.5 * size
    assert len(caplog.records) == 1
    assert "teacher_cache.max_gib" in caplog.text


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An object store in memory, with a folder of this node's own for what is fetched."""
    store = FileSystem.from_uri("mock:///bucket")[0]
    opened = Folder.filesystem

    def filesystem(folder: Folder) -> tuple[FileSystem, str]:
        if folder.local_path is not None:
            return opened(folder)
        return store, folder.location.partition("://")[2]

    monkeypatch.setattr(Folder, "filesystem", filesystem)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "node-1"))
    return "mock:///bucket/cache"


def test_an_object_store_is_read_once_per_node(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = epoch_of(Counting(), 1)
    assert same(epoch_of(cached(Counting(), bucket), 1), live)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "node-2"))
    other_node = Counting()
    assert same(epoch_of(cached(other_node, bucket), 1), live)
    assert other_node.count == 0
    reads: list[str] = []
    monkeypatch.setattr(Shelf, "read", lambda self, key, piece: reads.append(piece.name))
    same_node = Counting()
    assert same(epoch_of(cached(same_node, bucket), 1), live)
    assert (same_node.count, reads) == (0, [])


def test_a_network_file_system_is_read_through_a_copy_on_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that another machine removes while it is mapped here would end the process."""
    monkeypatch.setattr("orchestrator.teacher_cache.cache._is_on_network", lambda path: True)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "node"))
    live = epoch_of(Counting(), 1)
    shared = tmp_path / "shared"
    assert same(epoch_of(cached(Counting(), shared), 1), live)
    shutil.rmtree(shared)
    reader = Counting()
    assert same(epoch_of(cached(reader, shared), 1), live)
    assert reader.count == 0


def test_what_only_this_node_has_is_brought_back_where_all_look(
    bucket: str, tmp_path: Path
) -> None:
    own = cached(Counting(), bucket)
    assert own.fill(1) is None
    store = Folder(bucket)
    store.delete(KEY.digest)
    live = Counting()
    assert cached(live, bucket).fill(1) is None
    assert live.count == 0
    assert len((store / f"{KEY.digest}/00001").names()) == len(arrow_files(tmp_path / "node-1"))


def test_to_have_filled_an_epoch_is_to_have_kept_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cached(Counting(), tmp_path, max_bytes=1).fill(1) == module.NO_ROOM
    assert cached(Counting(), tmp_path / "there").fill(1) is None

    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Shelf, "use", fail)
    assert cached(Counting(), tmp_path / "there").fill(1) is None  # all is there to be read
    assert cached(Counting(), tmp_path / "absent").fill(1) == "Permission denied"


@pytest.mark.parametrize("damaged", ["copy", "original", "both"])
def test_a_damaged_copy_is_fetched_and_a_damaged_original_made_again(
    bucket: str, tmp_path: Path, damaged: str
) -> None:
    live = epoch_of(Counting(), 1)
    first = Counting()
    epoch_of(cached(first, bucket), 1)
    copy, *_ = arrow_files(tmp_path / "node-1")
    store = Folder(bucket)
    name = "/".join(copy.parts[-3:])
    if damaged in ("copy", "both"):
        copy.write_bytes(copy.read_bytes()[:-20])
    if damaged in ("original", "both"):
        store.write(name, b"nothing")
        if damaged == "original":
            copy.unlink()
    reader = Counting()
    assert same(epoch_of(cached(reader, bucket), 1), live)
    assert reader.count == (0 if damaged == "copy" else 2 * BATCH)
    assert len(store.read(name) or b"") > 100


@pytest.mark.parametrize("workers", [1, 2])
def test_with_views_later_epochs_read_the_first_ones_rows(tmp_path: Path, workers: int) -> None:
    how = recipe(views=2)
    count = 0
    for rank in range(workers):
        ranks = Ranks(rank=rank, size=workers)
        live = Counting()
        own = cached(live, tmp_path, how=how, ranks=ranks)
        for epoch in (1, 2, 3, 4, 5):
            expected = epoch_of(Counting(), epoch, how=how, ranks=ranks)
            close(epoch_of(own, epoch, how=how, ranks=ranks), expected)
        count += live.count
    assert count == 2 * NUM_IMAGES


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_keeps_what_it_can(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    live = epoch_of(Counting(), 1)
    first = epoch_of(cached(Counting(), tmp_path, dtype=dtype), 1)
    assert same(first, epoch_of(cached(Counting(), tmp_path, dtype=dtype), 1))
    for own, exact in zip(first, live, strict=True):
        torch.testing.assert_close(own, exact, rtol=tolerance, atol=1e-6)
        assert not torch.equal(own, exact)


def test_what_is_not_kept_is_rounded_as_well(tmp_path: Path) -> None:
    """A full disk must not change a loss."""
    kept = epoch_of(cached(Counting(), tmp_path / "kept", dtype=torch.bfloat16), 1)
    (tmp_path / "file").touch()
    not_kept = epoch_of(cached(Counting(), tmp_path / "file", dtype=torch.bfloat16), 1)
    assert same(kept, not_kept)
    assert not same(kept, epoch_of(Counting(), 1))


def test_values_that_fp16_cannot_hold_are_cut_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = FrozenTeacher.forward
    monkeypatch.setattr(
        FrozenTeacher, "forward", lambda *inputs: Answers(*(1e6 * x for x in forward(*inputs)))
    )
    epoch_of(cached(Counting(), tmp_path / "bf16", dtype=torch.bfloat16), 1)
    assert caplog.text == ""
    for epoch in (1, 2):
        logits, _ = epoch_of(cached(Counting(), tmp_path / "fp16", dtype=torch.float16), epoch)
        assert logits.abs().max() == 65504
    assert len(caplog.records) == 1
    assert "teacher_cache.dtype bf16 can hold them" in caplog.text


@pytest.mark.parametrize("kind", [Mapped, Resident])
def test_a_table_gives_the_rows_of_the_images_asked_for(kind: Callable[..., Table]) -> None:
    table = kind(10, torch.device("cpu"))
    logits, features = torch.randn(10, 3), torch.randn(10, 2)
    for positions in (torch.tensor([7, 1, 4]), torch.tensor([0, 2, 9, 3]), torch.tensor([5])):
        table.add(module.Rows(positions, logits[positions], features[positions]))
    for wanted in ([1, 7], [4], [9, 1, 5, 0, 7], [3, 3]):
        found = table.take(torch.tensor(wanted))
        assert torch.equal(found.logits, logits[wanted])
        assert torch.equal(found.features, features[wanted])

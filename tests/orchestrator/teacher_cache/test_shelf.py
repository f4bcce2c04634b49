"""Who may make a piece, and which ones go when there is no room."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.storage import Folder
from orchestrator.teacher_cache import leases
from orchestrator.teacher_cache import shelf as module
from orchestrator.teacher_cache.shelf import Piece, Shelf

KEY, OTHER = "0" * 16, "1" * 16
SIZE = 1000


def piece(view: int, first: int = 0) -> Piece:
    return Piece(view, first, first + 10, 0, 1)


def fill(shelf: Shelf, key: str, views: range, *, used_s_ago: float = 0) -> list[bool]:
    shelf.use(key, {})
    kept = [shelf.write(key, piece(view), bytes(SIZE)) for view in views]
    used = shelf.folder.local_path / key / "used"  # type: ignore[operator]
    os.utime(used, (time.time() - used_s_ago,) * 2)
    return kept


def held(shelf: Shelf, key: str) -> list[int]:
    return [view.view for view in shelf.views() if view.key == key]


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """On a file system, and through pyarrow as s3:// and gs:// go."""
    return Folder(str(tmp_path) if request.param == "local" else f"mock:///bucket{tmp_path}")


def test_names_lead_back_to_their_pieces() -> None:
    own = Piece(view=3, first=64, last=128, rank=1, size=4, micro=32)
    view, name = own.name.split("/")
    assert Piece.of(int(view), name) == own
    assert Piece.of(3, "about.json") is None


def test_what_is_written_is_listed_and_read(folder: Folder) -> None:
    shelf = Shelf(folder)
    assert shelf.pieces(KEY, 1) == []
    assert not shelf.has(KEY, piece(1))
    assert shelf.write(KEY, piece(1), b"content")
    assert shelf.pieces(KEY, 1) == [piece(1)]
    assert shelf.has(KEY, piece(1))
    assert shelf.read(KEY, piece(1)) == b"content"
    assert shelf.views() == []  # it does not say yet what it stands for
    shelf.use(KEY, {})
    assert shelf.views() == [(KEY, 1, 7)]
    shelf.delete(KEY, piece(1))
    assert shelf.read(KEY, piece(1)) is None


def test_the_budget_holds(folder: Folder) -> None:
    shelf = Shelf(folder, max_bytes=5 * SIZE)
    shelf.use(KEY, {})
    assert [shelf.write(KEY, piece(view), bytes(SIZE)) for view in range(1, 9)] == [
        *[True] * 5,
        *[False] * 3,
    ]
    # Of a run's own epochs, the first are worth most: all trials begin with them.
    assert held(shelf, KEY) == [1, 2, 3, 4, 5]


def test_an_earlier_epoch_takes_the_room_of_a_later_one(tmp_path: Path) -> None:
    shelf = Shelf(Folder(str(tmp_path)), max_bytes=3 * SIZE)
    fill(shelf, KEY, range(4, 7))
    assert shelf.write(KEY, piece(1), bytes(SIZE))
    assert held(shelf, KEY) == [1, 4, 5]
    assert not shelf.write(KEY, piece(9), bytes(SIZE))


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    shelf = Shelf(Folder(str(tmp_path)), max_bytes=6 * SIZE)
    fill(shelf, OTHER, range(1, 4), used_s_ago=7200)
    fill(shelf, "2" * 16, range(1, 4), used_s_ago=3600)
    assert fill(shelf, KEY, range(1, 5)) == [True] * 4
    assert held(shelf, OTHER) == []
    assert held(shelf, "2" * 16) == [1, 2]  # its last epoch, for the fourth of ours


def test_what_another_run_is_using_stays(tmp_path: Path) -> None:
    shelf = Shelf(Folder(str(tmp_path)), max_bytes=3 * SIZE)
    fill(shelf, OTHER, range(1, 4), used_s_ago=60)
    assert fill(shelf, KEY, range(1, 2)) == [False]
    assert held(shelf, OTHER) == [1, 2, 3]


def test_a_new_process_counts_what_is_there(tmp_path: Path) -> None:
    fill(Shelf(Folder(str(tmp_path)), max_bytes=4 * SIZE), KEY, range(1, 5))
    assert not Shelf(Folder(str(tmp_path)), max_bytes=4 * SIZE).write(KEY, piece(9), bytes(SIZE))


def test_the_default_budget_is_a_share_of_what_is_free(tmp_path: Path) -> None:
    shelf = Shelf(Folder(str(tmp_path)))
    statistics = os.statvfs(tmp_path)
    free = statistics.f_bavail * statistics.f_frsize
    assert shelf.budget() == pytest.approx(free / 4, rel=0.05)


def test_room_is_left_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that filled the disk would keep checkpoints from being written."""
    shelf = Shelf(Folder(str(tmp_path)), max_bytes=2**60)
    total = os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    monkeypatch.setattr(module, "_free", lambda path: int(0.04 * min(total, 2**30)))
    assert not shelf.write(KEY, piece(1), bytes(SIZE))


def test_unfinished_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    shelf = Shelf(Folder(str(tmp_path)))
    fill(shelf, KEY, range(1, 2))
    old, new = (tmp_path / KEY / "00001" / f".{name}.part" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    shelf.views()
    assert not old.exists()
    assert new.exists()


def test_what_others_keep_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    """A scratch folder may hold anything, also something that looks like ours."""
    theirs = [
        tmp_path / "shards" / "00001" / "00000000-00000010-0of1x0.arrow",
        tmp_path / "deep" / KEY / "00001" / "00000000-00000010-0of1x0.arrow",
        tmp_path / OTHER / "00001" / "00000000-00000010-0of1x0.arrow",  # no about.json
        tmp_path / "downloads" / ".film.part",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(10 * SIZE))
        os.utime(path, (0, 0))
    shelf = Shelf(Folder(str(tmp_path)), max_bytes=2 * SIZE)
    assert fill(shelf, KEY, range(1, 4)) == [True, True, False]
    assert all(path.exists() for path in theirs)


def test_processes_may_remove_the_same_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(Folder(str(tmp_path)))
    fill(shelf, KEY, range(1, 3))
    delete, calls = Folder.delete, iter([errno.ENOTEMPTY, errno.ENOENT])

    def interrupted(folder: Folder, name: str) -> None:
        number = next(calls, None)
        if number is not None:
            raise OSError(number, "another was faster")
        delete(folder, name)

    monkeypatch.setattr(Folder, "delete", interrupted)
    shelf.remove(KEY)
    assert not (tmp_path / KEY).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"holder": 1}', b'{"until": "x"}'])
def test_a_lease_that_cannot_be_read_is_nobodys(content: bytes) -> None:
    folder = Folder(f"mock:///bucket/unreadable-{len(content)}")
    shelf = Shelf(folder)
    shelf.folder.write(f"{KEY}/{piece(1).name}.lease", content)
    with shelf.lease(KEY, piece(1)) as mine:
        assert mine


def test_a_lease_is_held_by_one_at_a_time(folder: Folder) -> None:
    first, second = Shelf(folder), Shelf(folder)
    with first.lease(KEY, piece(1)) as mine:
        assert mine
        with second.lease(KEY, piece(1)) as too:
            assert not too
        with second.lease(KEY, piece(2)) as other:
            assert other
    with second.lease(KEY, piece(1)) as now:
        assert now
    assert shelf_files(folder) == []


def shelf_files(folder: Folder) -> list[str]:
    return [name for view in (1, 2) for name in (folder / f"{KEY}/{view:05d}").names()]


def test_a_lease_ends_with_a_killed_holder(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from orchestrator.storage import Folder\n"
        "from orchestrator.teacher_cache.shelf import Piece, Shelf\n"
        f"with Shelf(Folder({str(tmp_path)!r})).lease({KEY!r}, Piece(1, 0, 10, 0, 1)) as mine:\n"
        "    print(mine, flush=True)\n"
        "    time.sleep(600)\n"
    )
    shelf = Shelf(Folder(str(tmp_path)))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        with shelf.lease(KEY, piece(1)) as mine:
            assert not mine
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with shelf.lease(KEY, piece(1)) as mine:
        assert mine


def test_a_lease_on_an_object_store_is_prolonged_while_it_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "REMOTE_LEASE_S", 0.6)
    folder = Folder("mock:///bucket/long")
    name = f"{KEY}/{piece(1).name}.lease"
    with Shelf(folder).lease(KEY, piece(1)) as held:
        assert held
        first = json.loads(folder.read(name) or b"")
        deadline = time.monotonic() + 30
        now = first
        while now.get("until", 0.0) <= first["until"] + 0.6:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            now = json.loads(folder.read(name) or b"{}")
        assert now["holder"] == first["holder"]
        other = json.dumps({"holder": "another", "until": time.time() + 600})
        folder.write(name, other)
        time.sleep(0.5)
    assert (folder.read(name) or b"").decode() == other
    folder.delete(name)
    with Shelf(folder).lease(KEY, piece(1)) as mine:
        assert mine


def test_a_lease_on_an_object_store_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there can tell whether its holder lives."""
    folder = Folder("mock:///bucket/leases")
    name = f"{KEY}/{piece(1).name}.lease"
    until = time.time() + leases.REMOTE_LEASE_S
    folder.write(name, json.dumps({"holder": "one that has died", "until": until}))
    with Shelf(folder).lease(KEY, piece(1)) as mine:
        assert not mine
    monkeypatch.setattr(time, "time", lambda: until + 1)
    with Shelf(folder).lease(KEY, piece(1)) as mine:
        assert mine

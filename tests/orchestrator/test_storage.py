"""A folder's promises: a file is the old one or the new one, on a path and at a URI."""

from __future__ import annotations

import math
import os
import pickle
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.storage import Folder, check_writable

LOCATIONS: dict[str, Callable[[Path], str]] = {
    "path": lambda path: str(path),
    "file URI": lambda path: path.as_uri(),
    # Through pyarrow, as s3:// and gs:// go: Arrow's file system in memory.
    "pyarrow": lambda path: "mock:///bucket/runs",
}


@pytest.fixture(params=LOCATIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A folder that is not there yet."""
    return Folder(LOCATIONS[request.param](tmp_path / "some runs"))


def test_a_file_is_read_as_it_was_written(folder: Folder) -> None:
    folder.write("a.bin", b"\x00\xff")
    folder.write("b.txt", "grüße")
    assert folder.read("a.bin") == b"\x00\xff"
    assert folder.read("b.txt") == "grüße".encode()


def test_what_is_not_there_is_none_and_names_nothing(folder: Folder) -> None:
    assert folder.read("a") is None
    assert folder.read_json("a.json") is None
    assert folder.names() == []
    folder.delete("a")


def test_a_second_write_replaces_the_first(folder: Folder) -> None:
    folder.write("a", b"a long first text")
    folder.write("a", b"short")
    assert folder.read("a") == b"short"
    assert folder.names() == ["a"]


def test_names_are_sorted_and_those_of_this_folder_alone(folder: Folder) -> None:
    for name in ("b", "a", "inner/c"):
        folder.write(name, b"")
    assert folder.names() == ["a", "b", "inner"]


def test_deleting_takes_a_file_or_a_whole_folder(folder: Folder) -> None:
    for name in ("a", "inner/deep/c", "b"):
        folder.write(name, b"x")
    folder.delete("a")
    folder.delete("inner")
    assert folder.names() == ["b"]
    assert folder.read("inner/deep/c") is None


def test_json_keeps_values_that_are_not_finite(folder: Folder) -> None:
    folder.write_json("m.json", {"a": [1, None, "x"], "bad": math.nan, "big": -math.inf})
    found = folder.read_json("m.json")
    assert found["a"] == [1, None, "x"]
    assert math.isnan(found["bad"])
    assert found["big"] == -math.inf


@pytest.mark.parametrize("kind", ["path", "file URI"])
def test_a_folder_inside_is_the_same_place_by_either_name(tmp_path: Path, kind: str) -> None:
    folder = Folder(LOCATIONS[kind](tmp_path / "some runs"))
    (folder / "one").write("a", b"x")
    assert folder.read("one/a") == b"x"
    assert (tmp_path / "some runs" / "one" / "a").read_bytes() == b"x"
    assert (folder / "one").local_path == tmp_path / "some runs" / "one"


@pytest.mark.parametrize("kind", ["path", "file URI"])
def test_a_folder_travels_to_another_process(tmp_path: Path, kind: str) -> None:
    folder = Folder(LOCATIONS[kind](tmp_path))
    folder.write("a", b"x")
    folder.names()  # opens what it needs, which must not travel
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.location == folder.location
    assert copy.read("a") == b"x"


def test_a_folder_on_an_object_store_travels_after_it_was_opened() -> None:
    folder = Folder("mock:///bucket/runs")
    folder.write("a", b"x")
    assert pickle.loads(pickle.dumps(folder)).location == "mock:///bucket/runs"


@pytest.mark.parametrize("kind", ["path", "file URI"])
def test_a_reader_during_writes_never_sees_a_part(tmp_path: Path, kind: str) -> None:
    folder = Folder(LOCATIONS[kind](tmp_path))
    size = 1_000_000
    folder.write("a", b"0" * size)
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            while not stop.is_set():
                for letter in (b"0", b"1"):
                    folder.write("a", letter * size)
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        for _ in range(150):
            content = folder.read("a")
            assert content is not None
            seen.add((len(content), len(set(content))))
            assert folder.names() == ["a"]
    finally:
        stop.set()
        writer.join()
    assert seen == {(size, 1)}
    assert failures == []


@pytest.mark.parametrize("kind", ["path", "file URI"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_part(
    tmp_path: Path, kind: str
) -> None:
    folder = Folder(LOCATIONS[kind](tmp_path))
    folder.write("a", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError):
            folder.write("a", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    for location in (str(tmp_path / "a" / "b"), (tmp_path / "a" / "c").as_uri()):
        check_writable(Folder(location), setting="storage.path")
    check_writable(Folder(str(tmp_path)), setting="storage.path")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for location in (str(tmp_path / "file"), str(tmp_path / "file" / "runs")):
        with pytest.raises(UserError, match=r"^storage\.path: .* cannot be a folder: .*file is a"):
            check_writable(Folder(location), setting="storage.path")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_place_where_even_root_cannot_write_is_told_with_the_remedy() -> None:
    for location in ("/proc/runs", "file:///proc/runs"):
        with pytest.raises(UserError) as caught:
            check_writable(Folder(location), setting="storage.path")
        message = str(caught.value)
        assert message.startswith("storage.path: /proc/runs is not writable (")
        assert "name a folder that this user may write to" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="not writable"):
            check_writable(Folder(str(tmp_path)), setting="storage.path")
    finally:
        tmp_path.chmod(0o700)


def test_a_kind_of_uri_that_nothing_opens_is_told() -> None:
    with pytest.raises(UserError, match=r"^nowhere://bucket/runs: not a URI that pyarrow opens"):
        check_writable(Folder("nowhere://bucket/runs"), setting="storage.path")

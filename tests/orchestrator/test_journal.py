from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from orchestrator.journal import Entry, Journal, Point
from orchestrator.storage import Folder


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "run"))


def test_an_entry_is_one_small_file_with_its_values_as_they_were(run: Folder) -> None:
    Journal(run).append({"train/loss": 0.1, "val/top1": 12.5}, step=3, timestamp_ms=1700)

    assert (run / "journal").read_json("000001.json") == {
        "step": 3,
        "timestamp": 1700,
        "metrics": {"train/loss": 0.1, "val/top1": 12.5},
    }


def test_nan_and_infinities_survive_the_disk(run: Folder) -> None:
    Journal(run).append({"a": math.nan, "b": math.inf, "c": -math.inf}, step=1)

    nan, plus, minus = Journal(run).points()
    assert math.isnan(nan.value)
    assert (plus.value, minus.value) == (math.inf, -math.inf)


def test_numbering_goes_on_after_what_is_there(run: Folder) -> None:
    Journal(run).append({"a": 1.0}, step=1)
    Journal(run).append({"a": 2.0}, step=2)
    resumed = Journal(run)
    resumed.append({"a": 3.0}, step=3)

    assert [entry.number for entry in resumed.read()] == [1, 2, 3]
    assert resumed.last_number == 3


def test_numbering_survives_a_million_entries(run: Folder) -> None:
    (run / "journal").write_json("999999.json", {"step": 1, "timestamp": 5, "metrics": {"a": 1.0}})
    journal = Journal(run)
    journal.append({"a": 2.0}, step=2)
    journal.append({"a": 3.0}, step=3)

    assert [entry.number for entry in Journal(run).read()] == [999999, 1000000, 1000001]


def test_the_first_entry_of_a_point_wins(run: Folder) -> None:
    journal = Journal(run)
    journal.append({"a": 1.0}, step=1, timestamp_ms=10)
    journal.append({"a": 9.0, "b": 2.0}, step=1, timestamp_ms=20)
    journal.append({"a": 3.0}, step=2, timestamp_ms=30)

    assert journal.points() == [
        Point("a", 1, 1.0, 10),
        Point("b", 1, 2.0, 20),
        Point("a", 2, 3.0, 30),
    ]


def test_points_after_a_number_leave_out_what_an_earlier_entry_has(run: Folder) -> None:
    journal = Journal(run)
    journal.append({"a": 1.0}, step=1, timestamp_ms=10)
    journal.append({"a": 9.0, "b": 2.0}, step=1, timestamp_ms=20)

    assert journal.points(after=1) == [Point("b", 1, 2.0, 20)]
    assert journal.points(after=2) == []
    assert journal.points(until=1) == [Point("a", 1, 1.0, 10)]


def test_read_follows_a_journal_that_another_instance_writes(run: Folder) -> None:
    reader, writer = Journal(run), Journal(run)
    assert reader.read() == []
    writer.append({"a": 1.0}, step=1, timestamp_ms=10)
    assert reader.read(after=0) == [Entry(1, 1, 10, {"a": 1.0})]
    writer.append({"a": 2.0}, step=2, timestamp_ms=20)
    assert reader.read(after=1) == [Entry(2, 2, 20, {"a": 2.0})]


def test_history_adds_only_what_is_missing(run: Folder) -> None:
    journal = Journal(run)
    journal.append({"a": 1.0}, step=1)
    journal.append_history([(1, {"a": 7.0, "b": 2.0}), (2, {"a": 3.0}), (2, {"a": 4.0})])
    journal.append_history([(1, {"a": 7.0, "b": 2.0}), (2, {"a": 3.0})])

    points = [(name, step, value) for name, step, value, _ in journal.points()]
    assert points == [("a", 1, 1.0), ("b", 1, 2.0), ("a", 2, 3.0)]
    assert journal.last_number == 3


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b'{"step": 1, "timestamp": 10, "metr',
        b"\xff\xfe",
        b"[]",
        b'{"step": 1, "timestamp": 1, "metrics": {"a": "x"}}',
    ],
)
def test_a_damaged_entry_is_left_out_with_a_warning_and_its_step_can_be_written_again(
    run: Folder, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Journal(run).append({"a": 1.0}, step=1)
    (run / "journal").write("000002.json", torn)
    journal = Journal(run)
    with caplog.at_level(logging.WARNING):
        assert [point.step for point in journal.points()] == [1]
    assert "000002.json is damaged" in caplog.text

    journal.append_history([(1, {"a": 1.0}), (2, {"a": 2.0})])

    assert (run / "journal").names() == ["000001.json", "000002.json", "000003.json"]
    assert [(point.step, point.value) for point in journal.points()] == [(1, 1.0), (2, 2.0)]


def test_other_files_in_the_folder_are_no_entries(run: Folder) -> None:
    (run / "journal").write("notes.json", "{}")
    (run / "journal").write(".000001.json.ab.part", "{}")
    journal = Journal(run)
    journal.append({"a": 1.0}, step=1)

    assert journal.last_number == 1
    assert len(journal.read()) == 1


def test_a_journal_lives_at_a_uri_too(tmp_path: Path) -> None:
    run = Folder((tmp_path / "run").as_uri())
    Journal(run).append({"a": 1.0}, step=1, timestamp_ms=10)

    assert Journal(run).points() == [Point("a", 1, 1.0, 10)]

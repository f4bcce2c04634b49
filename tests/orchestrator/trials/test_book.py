"""What the driver writes down of trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import RESTARTS, Journal
from orchestrator.places import Places
from orchestrator.runs import read_state, write_state
from orchestrator.storage import Folder
from orchestrator.tracking_files import FINISH
from orchestrator.trials.book import Book
from orchestrator.trials.feed import ListSource
from orchestrator.trials.session import Tracking


class Watch:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def started(self, name: str, epoch: int, score: float | None) -> None:
        self.told.append(("started", name, epoch, score))

    def reported(self, name: str, epoch: int, score: float) -> None:
        self.told.append(("reported", name, epoch, score))

    def ended(self, name: str, state: str, score: float | None, message: str | None) -> None:
        self.told.append(("ended", name, state, score, message))


class TuneTrial:
    """Stands for Tune's own trial, of which the book uses the name."""

    def __str__(self) -> str:
        return "0001"


@pytest.fixture
def group(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "search"))


def book(group: Folder, watch: Watch) -> Book:
    places = Places(group, False, f"sqlite:///{group.location}/mlflow.db", None)
    return Book(
        group / "trials",
        source=ListSource([]),
        metric="val/loss",
        tracking=Tracking(group, places),
        watcher=watch,
        ended_before=0,
        students=False,
    )


def epochs(trial: Folder, count: int) -> None:
    for epoch in range(1, count + 1):
        Journal(trial).append({"val/top1": 10.0 * epoch, "val/loss": 1.0 / epoch}, step=epoch)


def test_a_trial_with_nothing_left_to_train_ends_with_what_it_had_reached(group: Folder) -> None:
    """Its earlier process was killed between the last epoch and the driver's hearing of it."""
    trial, watch = group / "trials" / "0001", Watch()
    epochs(trial, 4)
    Journal(trial).append({RESTARTS: 1}, step=2)
    trial.write_json("result.json", {"val/top1": 40.0, "val/top1_last": 40.0, "val/loss": 0.25})
    written = book(group, watch)
    written.on_trial_start(trial=TuneTrial())  # type: ignore[arg-type]
    written.on_trial_complete(trial=TuneTrial())  # type: ignore[arg-type]
    assert watch.told == [
        ("started", "0001", 4, 0.25),
        ("ended", "0001", "finished", 0.25, None),
    ]
    assert trial.read_json(FINISH)["step"] == 4
    best = [p for p in Journal(trial).points() if p.name == "val/top1_best"]
    assert [(point.step, point.value) for point in best] == [(4, 40.0)]


def test_restarts_are_counted_on_from_an_earlier_session(group: Folder) -> None:
    trial = group / "trials" / "0001"
    epochs(trial, 3)
    Journal(trial).append({RESTARTS: 1}, step=2)
    written = book(group, Watch())
    written.on_trial_start(trial=TuneTrial())  # type: ignore[arg-type]
    written.on_trial_recover(trial=TuneTrial())  # type: ignore[arg-type]
    restarts = [(p.step, p.value) for p in Journal(trial).points() if p.name == RESTARTS]
    assert restarts == [(2, 1.0), (3, 2.0)]


def test_checkpoints_go_only_once_nothing_goes_on_from_them(
    group: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = group / "trials" / "0001"
    epochs(trial, 1)
    trial.write("checkpoints/epoch_0001.pt", "weights")
    write_state(trial, "running")
    states = []
    delete = Folder.delete

    def noting(self: Folder, name: str) -> None:
        if name == "checkpoints":
            states.append(read_state(trial))
        delete(self, name)

    monkeypatch.setattr(Folder, "delete", noting)
    written = book(group, Watch())
    written.on_trial_start(trial=TuneTrial())  # type: ignore[arg-type]
    written.on_trial_complete(trial=TuneTrial())  # type: ignore[arg-type]
    assert states == ["stopped"]
    assert "checkpoints" not in trial.names()


def test_final_figures_of_a_group_that_was_extended_are_all_kept(group: Folder) -> None:
    places = Places(group, False, f"sqlite:///{group.location}/mlflow.db", None)
    tracking = Tracking(group, places)
    tracking.note({"search/best": 50.0}, step=4)
    for winner in (50.0, 50.0, 60.0, 55.0):
        tracking.finish("FINISHED", metrics={"search/winner": winner, "n": 3.0}, tags={})
    points = [(p.name, p.step, p.value) for p in Journal(group).points()]
    assert points == [
        ("search/best", 4, 50.0),
        ("search/winner", 4, 50.0),
        ("n", 4, 3.0),
        ("search/winner", 5, 60.0),
        ("search/winner", 6, 55.0),
    ]

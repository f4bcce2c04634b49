"""Groups on disk: what they are, what their trials have come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_experiment

from orchestrator.errors import DamagedFile, UserError
from orchestrator.experiment_file import build_experiment
from orchestrator.journal import Journal
from orchestrator.runs import write_state
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.trials.group import (
    Group,
    best_so_far,
    create_trial,
    find_group,
    open_group,
    read_trial,
    read_trials,
    write_group,
)


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "runs"))


def opened(storage: Folder, definition: dict[str, Any] | None = None, **changes: Any) -> Group:
    options: dict[str, Any] = {"new": False} | changes
    return open_group("search", "s", definition or {"seed": 0}, {"trials": 4}, storage, **options)


def experiment() -> Experiment:
    return build_experiment(tiny_experiment.tiny_values("teacher.pt"), where="test")


def epoch(top1: float, **more: float) -> dict[str, float]:
    return {"val/top1": top1, "train/loss": 1.0, **more}


def test_a_group_goes_on_under_its_name_with_another_request(storage: Folder) -> None:
    write_group(opened(storage))
    again = open_group("search", "s", {"seed": 0}, {"trials": 8}, storage, new=False)
    assert (again.exists, again.request) == (True, {"trials": 8})
    assert find_group("search", "s", storage).request == {"trials": 4}


def test_another_definition_is_refused_with_what_changed(storage: Folder) -> None:
    write_group(opened(storage, {"seed": 0, "space": {"title": "a"}}))
    with pytest.raises(UserError, match=r'space\.title: "a" -> "b"') as caught:
        opened(storage, {"seed": 0, "space": {"title": "b"}})
    assert "--new" in str(caught.value)


def test_new_takes_the_next_free_name(storage: Folder) -> None:
    write_group(opened(storage))
    second = opened(storage, new=True)
    assert (second.name, second.exists) == ("s-2", False)
    write_group(second)
    assert opened(storage, new=True).name == "s-3"


def test_a_name_of_something_else_is_refused(storage: Folder) -> None:
    write_group(opened(storage))
    with pytest.raises(UserError, match="'s' is a search, not a comparison"):
        open_group("comparison", "s", {}, {}, storage, new=False)
    storage.write("r/spec.json", "{}")
    with pytest.raises(UserError, match="'r' is a single run"):
        open_group("search", "r", {}, {}, storage, new=False)


def test_an_unknown_group_is_refused_with_the_known_ones(storage: Folder) -> None:
    with pytest.raises(UserError, match="holds no searches"):
        find_group("search", "x", storage)
    write_group(opened(storage))
    storage.write("a-file", "")
    storage.write("r/spec.json", "{}")
    with pytest.raises(UserError, match=r"no search 'x' in .*; known: s$"):
        find_group("search", "x", storage)


def test_a_trial_is_read_back_with_all_that_is_known_of_it(storage: Folder) -> None:
    folder = storage / "trials" / "0001"
    create_trial(folder, experiment(), {"objective.kd_weight": 0.5}, parameters=12)
    journal = Journal(folder)
    journal.append({"teacher/val_top1": 90.0}, step=0)
    journal.append(epoch(40.0), step=1)
    journal.append(epoch(50.0), step=2)
    record = read_trial(folder)
    assert record is not None
    assert (record.name, record.state, record.epochs) == ("0001", "interrupted", 2)
    assert record.settings == {"objective.kd_weight": 0.5}
    assert record.details == {"parameters": 12}
    assert record.experiment == experiment()
    assert not record.ended
    write_state(folder, "failed", message="it broke")
    failed = read_trial(folder)
    assert failed is not None and (failed.state, failed.error) == ("failed", "it broke")
    assert failed.ended
    folder.write_json("result.json", {"val/top1": 50.0})
    write_state(folder, "finished")
    finished = read_trial(folder)
    assert finished is not None and finished.result == {"val/top1": 50.0}


@pytest.mark.parametrize("content", ["[]", "{}", '{"kind": "search"}', "no JSON"])
def test_a_damaged_group_is_named(storage: Folder, content: str) -> None:
    storage.write("s/group.json", content)
    with pytest.raises(DamagedFile, match=r"s/group\.json is damaged"):
        opened(storage)
    with pytest.raises((DamagedFile, UserError), match=r"damaged|no search 's'"):
        find_group("search", "s", storage)


def test_a_folder_of_somebody_elses_is_left_alone(storage: Folder) -> None:
    storage.write("s/thesis.tex", "")
    with pytest.raises(UserError, match=r"runs/s is no run and holds 'thesis\.tex'"):
        opened(storage)


@pytest.mark.parametrize("name", ["spec.json", "trial.json"])
def test_a_trial_that_has_lost_a_file_is_named(storage: Folder, name: str) -> None:
    folder = storage / "trials" / "0001"
    create_trial(folder, experiment(), {})
    write_state(folder, "finished")
    folder.delete(name)
    with pytest.raises(DamagedFile, match=rf"0001/{name} is not there, though the trial has begun"):
        read_trials(storage / "trials")


def test_a_trial_that_was_cut_off_before_it_was_written_down_is_none(storage: Folder) -> None:
    folder = storage / "trials" / "0001"
    folder.write_json("trial.json", {"settings": {}})
    assert read_trial(folder) is None
    assert read_trials(storage / "trials") == []


def test_an_epoch_counts_once_its_score_is_known(storage: Folder) -> None:
    """A restart is noted at the epoch it came after, which may have no other metric yet."""
    folder = storage / "trials" / "0001"
    create_trial(folder, experiment(), {})
    Journal(folder).append({"faults/restarts": 1}, step=3)
    record = read_trial(folder)
    assert record is not None and record.epochs == 0


def test_the_score_is_that_of_the_student_that_would_be_kept() -> None:
    history = {
        0: {"teacher/val_top1": 99.0},
        1: epoch(50.0, **{"val/loss": 0.9}),
        2: epoch(70.0, **{"val/loss": 0.7}),
        3: epoch(60.0, **{"val/loss": 0.5}),
        4: epoch(70.0, **{"val/loss": 0.4}),  # of equals the first is kept
    }
    assert best_so_far(history, "val/top1") == {1: 50.0, 2: 70.0, 3: 70.0, 4: 70.0}
    assert best_so_far(history, "val/loss") == {1: 0.9, 2: 0.7, 3: 0.7, 4: 0.7}
    assert best_so_far({}, "val/top1") == {}

"""Which trials a search starts, starts again, and ranks by what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_experiment

from orchestrator.data import load_dataset
from orchestrator.experiment_file import build_experiment, changed, flatten
from orchestrator.search.driver import _again_if_all_failed
from orchestrator.search.records import goal_values, score, winner
from orchestrator.search.source import REFUSALS, SpaceSource
from orchestrator.search.study import Study
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.trials.group import Record
from search_spaces import Space


def experiment() -> Experiment:
    return build_experiment(tiny_experiment.tiny_values("teacher.pt"), where="test")


def space(parameters: dict[str, Any], **changes: Any) -> Space:
    values = {"title": "t", "description": "d", "trials": 8, "parameters": parameters}
    return Space.model_validate(values | changes)


def record(name: str, state: str, **details: Any) -> Record:
    values: dict[str, Any] = {
        "settings": {},
        "details": {},
        "experiment": experiment(),
        "error": "no" if state == "failed" else None,
        "history": {},
        "result": {},
    }
    return Record(name=name, state=state, **(values | details))


@pytest.mark.parametrize(
    ("states", "again"),
    [
        ("FFF", True),  # that ended it
        ("F", True),  # a search of one trial
        ("FFFI", True),  # one ran when it ended
        ("FI", False),  # it was interrupted
        ("FFII", False),
        ("FFFFD", False),  # one was trained
        ("FFFFS", False),  # one was stopped early
        ("II", False),
        ("", False),
    ],
)
def test_failed_trials_are_tried_again_only_when_that_is_how_the_search_ended(
    states: str, again: bool
) -> None:
    words = {"F": "failed", "I": "interrupted", "D": "finished", "S": "stopped"}
    records = [record(f"{n:04d}", words[state]) for n, state in enumerate(states)]
    found = _again_if_all_failed(records)
    assert any(one.state == "failed" for one in records) or found == records
    assert (found != records) == again
    if again:
        assert {one.state for one in found} == {"interrupted"}


def test_a_space_whose_points_are_all_refused_ends(tmp_path: Path) -> None:
    said: list[str] = []
    base = changed(
        experiment(), {"objective.min_temperature": 0.05, "objective.init_temperature": 0.07}
    )
    of = space({"objective.init_temperature": {"uniform": [0.01, 0.02]}})
    source = SpaceSource(
        of,
        Study(of, flatten(base.model_dump()), num_trials=8, seed=0, tried=[]),
        base=base,
        group_name="s",
        dataset=load_dataset(base.data),
        trials=Folder(str(tmp_path)),
        records=[],
        total=8,
        say=said.append,
    )
    assert source.next() is None
    assert len(said) == REFUSALS + 1
    assert "is below min_temperature 0.05" in said[0] and said[-1].startswith(
        f"{REFUSALS} points in a row"
    )


def test_the_number_of_a_trial_that_was_removed_is_given_again(tmp_path: Path) -> None:
    base, of = experiment(), space({"optimizer.lr": {"uniform": [0.1, 0.2]}})
    known = [record(n, "finished", settings={"optimizer.lr": 0.1}) for n in ("0001", "0003")]
    source = SpaceSource(
        of,
        Study(of, flatten(base.model_dump()), num_trials=4, seed=0, tried=[]),
        base=base,
        group_name="s",
        dataset=load_dataset(base.data),
        trials=Folder(str(tmp_path)),
        records=known,
        total=4,
        say=print,
    )
    new = [source.next(), source.next()]
    assert [trial.name for trial in new if trial is not None] == ["0002", "0004"]
    assert source.next() is None


def test_a_finished_trial_is_ranked_by_the_student_that_it_left() -> None:
    """A member of a population may have taken over a student that is older than its own epochs."""
    of = space({"objective.kd_weight": {"uniform": [0.0, 1.0]}})
    own = {1: {"val/top1": 90.0}, 2: {"val/top1": 20.0}}
    result = {"val/top1": 50.0, "val/top1_last": 20.0}
    worse = record("0001", "finished", history=own, result=result)
    better = record("0002", "finished", history=own, result=result | {"val/top1": 60.0})
    assert (score(worse, of), score(better, of)) == (50.0, 60.0)
    assert goal_values(better, of) == [60.0]
    assert winner([worse, better], of) == better
    assert score(worse._replace(state="interrupted", result={}), of) == 90.0

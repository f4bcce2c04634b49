"""Runs by name: the same again, another spec, a new one, and two drivers at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RunFailed, UserError
from orchestrator.experiment_file import build_experiment
from orchestrator.runs import (
    create_run,
    find_run,
    forget_run,
    locked,
    open_run,
    read_state,
    write_state,
)
from orchestrator.spec import Experiment
from orchestrator.storage import Folder

REPOSITORY = Path(__file__).resolve().parents[2]


def spec(name: str = "run", **sections: Any) -> Experiment:
    values = {"name": name, "objective": {"method": "ce"}, **sections}
    return build_experiment(values, where="test")


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "runs"))


def start(experiment: Experiment, storage: Folder, *, epochs: int = 0) -> Folder:
    """What a run of so many finished epochs has left on the disk."""
    run = open_run(experiment, storage, new=False)
    create_run(run, fingerprints={"images": "f" * 16})
    write_state(run.folder, "running")
    for epoch in range(1, epochs + 1):
        (run.folder / "checkpoints").write(f"epoch_{epoch:04d}.pt", b"")
    return run.folder


def test_a_name_that_is_not_there_is_a_new_run_and_nothing_is_written(storage: Folder) -> None:
    run = open_run(spec(), storage, new=False)
    assert run.state is None
    assert not run.replaces
    assert run.folder.location == f"{storage.location}/run"
    assert storage.names() == []


@pytest.mark.parametrize("state", ["running", "interrupted", "failed", "finished"])
def test_the_same_again_is_the_same_run(storage: Folder, state: Any) -> None:
    folder = start(spec(), storage, epochs=1)
    folder.write_json("result.json", {})
    write_state(folder, state)
    run = open_run(spec(), storage, new=False)
    assert (run.state, run.replaces) == (state, False)
    assert run.experiment == spec()


def test_a_finished_run_whose_result_is_lost_goes_on_to_write_it_again(storage: Folder) -> None:
    write_state(start(spec(), storage, epochs=1), "finished")
    assert open_run(spec(), storage, new=False).state == "interrupted"


def test_a_damaged_spec_is_named(storage: Folder) -> None:
    folder = start(spec(), storage, epochs=1)
    folder.write("spec.json", "{bad")
    with pytest.raises(RunFailed, match=r"run/spec\.json is damaged"):
        open_run(spec(), storage, new=False)


def test_a_name_like_that_of_an_unfinished_file_is_numbered_all_the_same(storage: Folder) -> None:
    start(spec(name="x.part"), storage, epochs=1)
    assert open_run(spec(name="x.part"), storage, new=True).experiment.name == "x.part-2"


def test_a_run_may_go_on_elsewhere_with_other_resources(storage: Folder) -> None:
    start(spec(), storage, epochs=1)
    moved = spec(scaling={"workers": 4, "wait_s": 5}, tracking={"enabled": False})
    assert open_run(moved, storage, new=False).state == "running"


def test_a_run_that_never_wrote_its_state_was_interrupted(storage: Folder) -> None:
    folder = start(spec(), storage)
    folder.delete("state.json")
    assert read_state(folder) == "interrupted"


def test_another_spec_under_the_same_name_is_refused_with_what_changed(storage: Folder) -> None:
    start(spec(train={"epochs": 3}), storage, epochs=1)
    with pytest.raises(UserError) as caught:
        open_run(spec(train={"epochs": 5}, seed=2, student={"args": {"a": 1}}), storage, new=False)
    message = str(caught.value)
    assert "run 'run' exists with another spec" in message
    assert "train.epochs: 3 -> 5" in message
    assert "seed: 0 -> 2" in message
    assert "student.args: {} -> (absent)" in message
    assert "student.args.a: (absent) -> 1" in message
    assert "optimizer" not in message
    assert "--new" in message


def test_a_run_that_finished_no_epoch_gives_way_to_another_spec(storage: Folder) -> None:
    start(spec(train={"epochs": 3}), storage)
    run = open_run(spec(train={"epochs": 5}), storage, new=False)
    assert (run.state, run.replaces) == (None, True)
    assert not open_run(spec(train={"epochs": 3}), storage, new=False).replaces


def test_new_takes_the_next_free_number(storage: Folder) -> None:
    assert open_run(spec(), storage, new=True).experiment.name == "run"
    start(spec(), storage)
    second = open_run(spec(), storage, new=True)
    assert second.experiment.name == "run-2"
    assert second.folder.location == f"{storage.location}/run-2"
    assert second.state is None
    create_run(second, fingerprints={"images": "f" * 16})
    assert open_run(spec(), storage, new=True).experiment.name == "run-3"
    assert open_run(spec(seed=9), storage, new=True).experiment.name == "run-3"


def test_a_number_that_makes_the_name_too_long_is_refused(storage: Folder) -> None:
    start(spec("x" * 100), storage)
    with pytest.raises(UserError, match="name: "):
        open_run(spec("x" * 100), storage, new=True)


def test_a_run_is_found_by_name_with_its_whole_spec(storage: Folder) -> None:
    experiment = spec(train={"epochs": 3}, optimizer={"lr": 0.3}, tracking={"register": "m"})
    start(experiment, storage)
    assert find_run("run", storage) == experiment


def test_an_unknown_run_is_told_with_those_there_are(storage: Folder) -> None:
    with pytest.raises(UserError, match="it holds no runs"):
        find_run("other", storage)
    start(spec(), storage)
    with pytest.raises(UserError) as caught:
        find_run("other", storage)
    assert str(caught.value) == f"no run 'other' in {storage.location}; known runs: run"


def test_forgetting_a_run_leaves_its_lock_alone(storage: Folder) -> None:
    folder = start(spec(), storage, epochs=2)
    with locked(folder):
        forget_run(folder)
        assert folder.names() == ["lock"]


HOLD = """
import sys, time
from orchestrator.runs import locked
from orchestrator.storage import Folder
with locked(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_run_that_another_process_writes_is_refused_until_that_process_dies(
    storage: Folder,
) -> None:
    folder = storage / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder.location],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as caught, locked(folder):
            pass
        assert f"'run' is being written by process {holder.pid} on " in str(caught.value)
        assert str(caught.value).endswith(": wait for it to end")
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with locked(folder):
        assert json.loads((folder.read("lock") or b"").decode())["pid"] == os.getpid()


def test_a_lock_is_free_again_after_its_block(storage: Folder) -> None:
    for _ in range(2):
        with locked(storage / "run"):
            pass
    with locked(storage / "run"):
        again = locked(storage / "run")
        with pytest.raises(UserError, match=f"process {os.getpid()}"), again:
            pass

"""Runs on disk: a name, the spec it stands for, and how far it has come."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment, changed, identity
from orchestrator.spec import Experiment
from orchestrator.storage import Folder

State = Literal["running", "interrupted", "stopped", "failed", "finished"]


class Run(NamedTuple):
    """A run's folder and the experiment under its final name."""

    experiment: Experiment
    folder: Folder
    state: State | None
    """None when the run does not exist yet."""
    replaces: bool = False
    """Whether a run of the same name and another spec lies there that finished no epoch."""


def open_run(experiment: Experiment, storage: Folder, *, new: bool) -> Run:
    """The run of an experiment: the one that exists, or one yet to be created.

    Args:
        experiment: what to run.
        storage: the folder of all runs.
        new: take the next free name instead of an existing run.

    Raises:
        UserError: the name is taken by another experiment.
    """
    if new:
        taken = set(storage.names())
        name, number = experiment.name, 1
        while name in taken:
            number += 1
            name = f"{experiment.name}-{number}"
        return Run(changed(experiment, {"name": name}), storage / name, None)
    folder = storage / experiment.name
    stored = folder.read_json("spec.json")
    if stored is None:
        check_unused(folder)
        return Run(experiment, folder, None)
    before = identity(build_experiment(stored, where=f"{folder.location}/spec.json"))
    now = identity(experiment)
    differences = [
        f"  {key}: {_show(before, key)} -> {_show(now, key)}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key) or (key in before) != (key in now)
    ]
    if differences and not (folder / "checkpoints").names():
        return Run(experiment, folder, None, replaces=True)
    if differences:
        raise UserError(
            f"run {experiment.name!r} exists with another spec; changed:\n"
            + "\n".join(differences)
            + "\nGive another name, or --new for a fresh run with a number behind the name."
        )
    return Run(experiment, folder, read_state(folder))


def find_run(name: str, storage: Folder) -> Experiment:
    """The experiment of an existing run.

    Raises:
        UserError: there is no such run.
    """
    stored = (storage / name).read_json("spec.json")
    if stored is None:
        names = (name for name in storage.names() if not name.startswith("."))
        known = [name for name in names if (storage / name).read("spec.json") is not None]
        listing = f"known runs: {', '.join(known[:20])}" if known else "it holds no runs"
        raise UserError(f"no run {name!r} in {storage.location}; {listing}")
    return build_experiment(stored, where=f"{storage.location}/{name}/spec.json")


def create_run(run: Run, *, fingerprints: Mapping[str, str]) -> None:
    """Write what a run is: its spec, and the fingerprints of its inputs."""
    run.folder.write_json("spec.json", run.experiment.model_dump(mode="json"))
    run.folder.write_json("inputs.json", dict(fingerprints))


def check_unused(folder: Folder) -> None:
    """Refuse a folder that holds something, and so was not made for a run.

    Raises:
        UserError: names what lies there.
    """
    others = [name for name in folder.names() if name != "lock"]
    if others:
        raise UserError(
            f"{folder.location} is no run and holds {others[0]!r}: give another name, or move that "
            "away"
        )


def forget_run(folder: Folder) -> None:
    """Remove all that a run has left but its lock."""
    for name in folder.names():
        if name != "lock":
            folder.delete(name)


def read_state(folder: Folder) -> State:
    """How far an existing run has come; one that never wrote it was stopped at once."""
    state: State = (folder.read_json("state.json") or {}).get("state", "interrupted")
    if state == "finished" and folder.read("result.json") is None:
        return "interrupted"  # the result was lost: going on writes it again
    return state


def write_state(folder: Folder, state: State, **details: Any) -> None:
    """Record how far a run has come."""
    folder.write_json("state.json", {"state": state, **details})


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Keep two drivers from writing one run; the lock goes with the process that holds it.

    Object stores have no locks: there, two drivers of one run are the user's to avoid.

    Raises:
        UserError: another process holds it.
    """
    path = folder.local_path
    if path is None:
        yield
        return
    import fcntl

    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = json.loads(file.read() or "{}")
            raise UserError(
                f"{path.name!r} is being written by process {holder.get('pid')} on "
                f"{holder.get('host')}: wait for it to end"
            ) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        yield


def wait_unlocked(folder: Folder, *, say: Callable[[str], None]) -> None:
    """Wait while another process writes a run, saying so once."""
    said = False
    while True:
        try:
            with locked(folder):
                return
        except UserError as error:
            if not said:
                say(f"waiting: {error}".removesuffix(": wait for it to end"))
                said = True
            time.sleep(1.0)


def _show(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(absent)"

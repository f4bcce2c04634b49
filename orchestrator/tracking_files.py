"""What a tracked run keeps in ``tracking/`` of its folder, and which runs make up a group.

``request.json`` says what MLflow is to know of the run, ``finish.json`` how it ended, and
``state.json`` how far sending has come. A group, such as a search, is a tracked run whose folder
holds those of its trials; they go where the group goes, so that where that is stands only there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import DamagedFile
from orchestrator.journal import Journal
from orchestrator.mlflow_client import Unsent
from orchestrator.storage import Folder

REQUEST = "tracking/request.json"
FINISH = "tracking/finish.json"
STATE = "tracking/state.json"

GROUP_FILE = "group.json"
_MEMBER_FOLDERS = ("trials", "finals")


def is_group(folder: Folder) -> bool:
    """Whether a folder belongs to many runs under one parent, and not to a single run."""
    return folder.read(GROUP_FILE) is not None


def group_members(group: Folder) -> list[Folder]:
    """The folders of a group's tracked runs: its own, which is the parent, and its children's."""
    children = (group / part / name for part in _MEMBER_FOLDERS for name in (group / part).names())
    return [run for run in (group, *children) if run.read(REQUEST) is not None]


def levels_below(run: Folder, parent: Folder) -> int:
    """How many folders a run lies below its parent.

    That, unlike the parent's location, still holds when the whole storage has been moved.
    """
    prefix = f"{parent.location}/"
    if not run.location.startswith(prefix):
        raise ValueError(f"{run.location} does not lie in the folder of its parent, {prefix}")
    return run.location.removeprefix(prefix).count("/") + 1


def parent_of(run: Folder, request: dict[str, Any]) -> Folder | None:
    """The folder of the run that a requested one is shown under."""
    levels = request["levels_below_parent"]
    return None if levels is None else Folder(run.location.rsplit("/", levels)[0])


def read_request(run: Folder) -> dict[str, Any] | None:
    """What was requested of a run; None when nothing was.

    Raises:
        Unsent: the run has a parent that nothing was requested of.
    """
    request: dict[str, Any] | None = run.read_json(REQUEST)
    parent = parent_of(run, request) if request else None
    if request is None or parent is None:
        return request
    above = parent.read_json(REQUEST)
    if above is None:
        raise Unsent(f"it belongs to {parent.location}, and nothing says where to track that")
    return request | {"uri": above["uri"], "artifact_root": above["artifact_root"]}


def read_state(run: Folder, request: dict[str, Any]) -> dict[str, Any]:
    """How far sending has come; at another tracking URI than before it starts anew."""
    state: dict[str, Any] | None = run.read_json(STATE)
    if state is None:
        return {"uri": request["uri"], "attempted": False}
    if state["uri"] != request["uri"]:
        # The run may be there all the same, as when it comes back to where it was at first.
        return {"uri": request["uri"], "attempted": True}
    return state


def has_pending(run: Folder) -> bool:
    """Whether a run has something that MLflow does not have; asks no server."""
    try:
        request = read_request(run)
        if request is None:
            return False
        state = read_state(run, request)
        return is_behind(state, request, run.read_json(FINISH), Journal(run).last_number)
    except (Unsent, DamagedFile):  # whoever tries to send it is told why it cannot be
        return True


def is_behind(
    state: dict[str, Any],
    request: dict[str, Any],
    finish: dict[str, Any] | None,
    last_number: int,
) -> bool:
    """Whether something is left to send of a run whose journal ends with `last_number`."""
    return (
        state.get("run_id") is None
        or state.get("described") != request["revision"]
        or last_number > state.get("sent_through", 0)
        or (finish["key"] if finish else None) != state.get("finished")
        or (finish is None and state["status"] != "RUNNING")
        or must_register(state, request, finish)
    )


def must_register(
    state: dict[str, Any], request: dict[str, Any], finish: dict[str, Any] | None
) -> bool:
    """Whether the student is in MLflow and not yet registered under the requested name."""
    model, name = state.get("model"), request["register"]
    if finish is None or not finish["student"] or model is None or name is None:
        return False
    return state.get("registered") != {"name": name, "model": model["id"]}


@contextmanager
def sending_alone(run: Folder) -> Iterator[None]:
    """Keep other threads and processes of this machine from sending the same run meanwhile.

    Raises:
        Unsent: one is doing that.
    """
    local = run.local_path
    if local is None:
        digest = hashlib.sha256(run.location.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir(), f"dcd-sync-{os.getuid()}-{digest}.lock")
    elif (local / REQUEST).exists():
        path = local / "tracking" / ".sync.lock"
    else:
        yield  # nothing to send: leave no trace
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unsent("another process is sending this run") from error
        yield

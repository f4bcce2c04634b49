"""Writing down in a run's folder what MLflow is to know of it, be its server there or not."""

from __future__ import annotations

import getpass
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import UserError
from orchestrator.journal import Journal
from orchestrator.mlflow_run import KEY_TAG
from orchestrator.storage import Folder
from orchestrator.tracking_files import FINISH, REQUEST, levels_below, parent_of


def request_tracking(
    run: Folder,
    *,
    uri: str,
    experiment: str,
    run_name: str,
    tags: Mapping[str, Any],
    params: Mapping[str, Any],
    texts: Mapping[str, str],
    dataset: Mapping[str, str] | None = None,
    artifact_root: str | None = None,
    parent: Folder | None = None,
    register: str | None = None,
) -> None:
    """Write down all that is needed to create and fill the run in MLflow, now or later.

    A run that has been requested before at the same URI goes on in its MLflow run, with the
    parameters it has there (MLflow never changes a parameter) and the new tags and texts. The same
    request again changes nothing.

    Args:
        run: the run's folder.
        uri: MLflow tracking URI; a run with a parent goes where its parent goes.
        experiment: MLflow experiment, created when it is not there.
        run_name: the run's name in MLflow.
        tags: tags of the run; values become strings.
        params: parameters of the run; values become strings.
        texts: text artifacts, artifact path -> text.
        dataset: ``name``, ``digest``, ``source`` and ``profile`` (JSON) of the data set, and
            ``context``, what it is used for, when that is not training.
        artifact_root: where a new experiment keeps its artifacts when `uri` is a database; a server
            decides for itself.
        parent: folder of the run that MLflow shows this one under; this run's lies inside it.
        register: name to register the student under.
    """
    place: dict[str, Any] = {
        "uri": _absolute(uri),
        "artifact_root": None if artifact_root is None else str(Path(artifact_root).absolute()),
        "levels_below_parent": None,
    }
    if parent is not None:
        place = {"levels_below_parent": levels_below(run, parent)}
    previous = run.read_json(REQUEST)
    again = previous is not None and previous.get("uri") == place.get("uri")
    key = previous["key"] if again else uuid.uuid4().hex
    all_tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": "dcd",
        "mlflow.source.type": "JOB",
        **tags,
        KEY_TAG: key,
    }
    request = {
        "key": key,
        "revision": previous["revision"] if again else uuid.uuid4().hex,
        "created_ms": previous["created_ms"] if again else _now_ms(),
        "experiment": experiment,
        "run_name": run_name,
        "register": register,
        "tags": {name: str(value) for name, value in all_tags.items()},
        "params": previous["params"] if again else {k: str(v) for k, v in params.items()},
        "texts": dict(texts),
        "dataset": None if dataset is None else dict(dataset),
        **place,
    }
    if request != previous:
        run.write_json(REQUEST, request | {"revision": uuid.uuid4().hex})


def finish_request(
    run: Folder,
    *,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    metrics: Mapping[str, float],
    tags: Mapping[str, Any],
    student: bool,
    step: int | None = None,
    artifacts: Sequence[str] = (),
) -> None:
    """Write down how the run ended; again, when it has ended anew.

    Args:
        run: the run's folder.
        status: MLflow's word for it.
        metrics: final results, which go through the journal like all others.
        tags: tags to add; values become strings.
        student: whether the package in ``student/`` becomes an MLflow model.
        step: step (epoch) of the results; the newest in the journal when not given.
        artifacts: files to send, by their paths in the run's folder, which are theirs in MLflow.
    """
    journal = Journal(run)
    if step is None:
        step = max((point.step for point in journal.points()), default=0)
    journal.append_history([(step, metrics)])
    run.write_json(
        FINISH,
        {
            "key": uuid.uuid4().hex,
            "time_ms": _now_ms(),
            "status": status,
            "step": step,
            "tags": {name: str(value) for name, value in tags.items()},
            "student": student,
            "artifacts": list(artifacts),
        },
    )


def register_later(run: Folder, name: str) -> None:
    """Have the student of a run registered under a name, also when it is in MLflow already.

    Args:
        run: the run's folder, with `request_tracking` done.
        name: of the registered model.
    """
    run.write_json(REQUEST, run.read_json(REQUEST) | {"register": name})


def retarget(run: Folder, *, uri: str, artifact_root: str | None) -> None:
    """Send a run, and with a group all of it, to another place than was requested.

    The run keeps its key, by which it is found where it has been before, under whatever URI.

    Args:
        run: the run's folder, with `request_tracking` done.
        uri: the other MLflow tracking URI.
        artifact_root: as for `request_tracking`.

    Raises:
        UserError: the run goes where its group goes.
    """
    request = run.read_json(REQUEST)
    group = parent_of(run, request)
    if group is not None:
        name = group.location.rsplit("/", 1)[-1]
        raise UserError(
            f"{run.location} is tracked where its group is: move the whole group with "
            f"`dcd sync {name} --uri URI`"
        )
    if request["uri"] != uri:
        run.write_json(REQUEST, request | {"uri": uri, "artifact_root": artifact_root})


def reopen(run: Folder) -> None:
    """Take back `finish_request`, as a resumed run does: it is running again."""
    run.delete(FINISH)


def _absolute(uri: str) -> str:
    """A SQLite database in the working directory, for whoever sends the run from another one."""
    path = uri.removeprefix("sqlite:///")
    return f"sqlite:///{Path(path).absolute()}" if path and path != uri else uri


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without an entry for this user
        return "unknown"

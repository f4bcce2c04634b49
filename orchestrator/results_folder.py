"""The folder that a measurement leaves beside the runs, whole or not at all, and its MLflow run."""

from __future__ import annotations

import errno
import itertools
import json
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from orchestrator.data import Dataset, describe_counts
from orchestrator.environment import describe_environment, git_commit
from orchestrator.errors import Interrupted
from orchestrator.experiment_file import changed, flatten, yaml_text
from orchestrator.journal import Journal
from orchestrator.places import Places, chosen_tracking, find_places
from orchestrator.progress import Display
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.summary import tracking_line
from orchestrator.tracking import SyncReport, finish_request, request_tracking, sync_run
from orchestrator.tracking_files import read_request

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


class Measurement(NamedTuple):
    """What was found out about a model on some images."""

    name: str
    """Of the folder and the MLflow run; a number is put behind it when it is taken."""
    role: str
    """What it is, as a tag: `evaluation` or `transfer`."""
    note: str
    """Description of the MLflow run."""
    files: Mapping[str, bytes | str]
    """By name; they are the run's artifacts too."""
    params: Mapping[str, str]
    """What was asked for, beside the data."""
    tags: Mapping[str, str]
    """Among them those that link to the model's own run."""
    metrics: Mapping[str, float]
    """Results."""
    history: Mapping[int, Mapping[str, float]]
    """Metrics by epoch, counted from 1."""


def measurement_places(images: Experiment, run: Folder | None) -> Places:
    """Where results go: tracking beside the model's own run, unless another place is chosen.

    Args:
        images: the experiment that the images come from.
        run: folder of the model's run.
    """
    places = find_places(images)
    request = read_request(run) if run is not None else None
    chosen = chosen_tracking(images.tracking.uri)
    if request is None or places.tracking_uri is None or chosen is not None:
        return places
    return places._replace(tracking_uri=request["uri"], artifact_root=request["artifact_root"])


def data_name(images: Experiment) -> str:
    """The images in a word, for names of folders and runs."""
    data = images.data
    if data.source in ("imagefolder", "parquet") and data.path is not None:
        path = data.path
        if "://" in path:  # without keys and options
            uri = urlsplit(path)
            path = uri.netloc.rpartition("@")[2] + unquote(uri.path)
        last = PurePosixPath(path)
        return last.stem if last.suffix == ".parquet" else last.name
    return data.source


def leave_results(
    measurement: Measurement, *, images: Experiment, dataset: Dataset, places: Places
) -> Folder:
    """Write the folder, with what MLflow is to know of it.

    On a file system all is written under another name and renamed, so that a command that is
    stopped leaves nothing. At a URI, files appear one after the other.

    Args:
        measurement: what to leave.
        images: the experiment that the images come from.
        dataset: the images.
        places: where to.
    """
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", measurement.name).strip("-.")[:90]
    names = (base if number == 1 else f"{base}-{number}" for number in itertools.count(1))
    for name in names:
        target = places.storage / name
        if target.names():
            continue
        final = target.local_path
        if final is None:
            _fill(target, target, measurement, images, dataset, places)
            return target
        partial = final.with_name(f".{name}.{uuid.uuid4().hex[:8]}.part")
        try:
            _fill(Folder(str(partial)), target, measurement, images, dataset, places)
            partial.rename(final)
            return target
        except OSError as error:
            if error.errno not in _TAKEN:  # by another command, meanwhile
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise AssertionError("there is always another number")


def send(folder: Folder, places: Places, *, display: Display) -> SyncReport | None:
    """Send a folder of results to MLflow; None with tracking off.

    Raises:
        Interrupted: a signal came; `run` names the folder, which is complete.
    """
    if places.tracking_uri is None:
        return None
    name = folder.location.rsplit("/", 1)[-1]
    try:
        with display.step(f"{name}: sending to MLflow"):
            return sync_run(folder)
    except Interrupted as error:
        error.run = name
        raise


def _fill(
    folder: Folder,
    target: Folder,
    measurement: Measurement,
    images: Experiment,
    dataset: Dataset,
    places: Places,
) -> None:
    for name, content in measurement.files.items():
        folder.write(name, content)
    if places.tracking_uri is None:
        return
    data = images.data.model_dump(mode="json")
    request_tracking(
        folder,
        uri=places.tracking_uri,
        experiment=images.tracking.experiment,
        run_name=target.location.rsplit("/", 1)[-1],
        tags={
            "dcd.role": measurement.role,
            "dcd.run_folder": target.location,
            "data.source": images.data.source,
            "data.fingerprint": dataset.fingerprint,
            "data.split_seed": str(images.data.split_seed),
            "git.commit": git_commit() or "unknown",
            "mlflow.note.content": measurement.note,
            **measurement.tags,
        },
        params={**measurement.params, **flatten({"data": data})},
        texts={"data.yaml": yaml_text({"data": data}), "environment.txt": describe_environment()},
        dataset={
            "name": images.data.source,
            "digest": dataset.fingerprint,
            "source": images.data.path or images.data.source,
            "profile": json.dumps({"counts": describe_counts(dataset)}),
            "context": measurement.role,
        },
        artifact_root=places.artifact_root,
    )
    journal = Journal(folder)
    for epoch, metrics in measurement.history.items():
        journal.append(metrics, step=epoch)
    finish_request(
        folder,
        status="FINISHED",
        metrics=measurement.metrics,
        tags={},
        student=False,
        artifacts=list(measurement.files),
    )


def where_results_are(
    folder: Folder, images: Experiment, places: Places, report: SyncReport | None
) -> list[str]:
    """Lines for the end of a command: the folder, and what there is of it in MLflow."""
    lines = [f"results  {folder.location}"]
    if report is None:
        return lines
    own = changed(images, {"tracking.uri": places.tracking_uri})
    pending = [report.pending] if report.pending is not None else []
    return lines + tracking_line(folder.location.rsplit("/", 1)[-1], pending, own)

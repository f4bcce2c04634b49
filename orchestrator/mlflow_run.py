"""One run in MLflow: found or created, filled, ended."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.journal import Point
from orchestrator.mlflow_client import Unsent, connect, is_http

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, RunInfo

    from orchestrator.storage import Folder

logger = logging.getLogger(__name__)

KEY_TAG = "dcd.key"
"""Tag by which a run is found again when its id was lost in a crash."""

PARENT_TAG = "mlflow.parentRunId"
"""Tag by which MLflow shows a run under another."""

TEACHER_MODEL_TAG = "teacher.model"
"""Tag with the URI of the model that a run learns from."""

# Opens the experiment in the UI's view for training, not for language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


class Destination(NamedTuple):
    """Where runs are sent to, for as long as one connection lasts."""

    uri: str
    """MLflow tracking URI."""
    client: MlflowClient
    """Connected to it."""
    experiment_ids: dict[str, str]
    """Those asked for so far, by name."""


@contextmanager
def open_destination(uri: str) -> Iterator[Destination]:
    """Connect to a tracking URI, for one run or many.

    Raises:
        Unreachable: an HTTP server does not answer.
    """
    with connect(uri) as client:
        yield Destination(uri, client, {})


def known_run(client: MlflowClient, run_id: str) -> RunInfo | None:
    """A run by its id; None when MLflow has lost it.

    Raises:
        Unsent: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    try:
        info: RunInfo = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if info.lifecycle_stage == "deleted":
        raise Unsent(f"the MLflow run {run_id} was deleted: restore it first")
    return info


def find_run(to: Destination, request: dict[str, Any]) -> RunInfo | None:
    """The requested run, when it was created and its id lost."""
    found = to.client.search_runs(
        [_experiment_id(to, request)], f"tags.`{KEY_TAG}` = '{request['key']}'", max_results=1
    )
    return found[0].info if found else None


def create_run(to: Destination, request: dict[str, Any], *, tags: Mapping[str, str]) -> RunInfo:
    """Create the requested run.

    Raises:
        Unsent: the experiment was deleted.
    """
    run = to.client.create_run(
        _experiment_id(to, request),
        start_time=request["created_ms"],
        tags=dict(tags),
        run_name=request["run_name"],
    )
    return run.info


def log_values(
    client: MlflowClient,
    run_id: str,
    points: Iterable[Point],
    *,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    model_id: str | None = None,
) -> int:
    """Send points, parameters and tags in as few calls as MLflow's limits allow.

    Points keep the time they were measured at, which makes sending them twice harmless.

    Args:
        client: of the tracking server.
        run_id: the run.
        points: what to send.
        params: parameters to send with them.
        tags: tags to send with them.
        model_id: a model of the run that is to show the points too.

    Returns:
        How many points.
    """
    from mlflow.entities import Metric, Param, RunTag

    metrics = [
        Metric(point.name, point.value, point.timestamp_ms, point.step, model_id=model_id)
        for point in points
    ]
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param(*item) for item in (params or {}).items()],
        tags=[RunTag(*item) for item in (tags or {}).items()],
    )
    return len(metrics)


def log_dataset(client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
    """Show what data a run is trained or measured on."""
    client.log_inputs(run_id, datasets=[_dataset_input(values)])


def log_teacher(client: MlflowClient, run_id: str, model_uri: str) -> None:
    """Show the model that a run learns from, unless it is not here or is shown already."""
    from mlflow.entities import LoggedModelInput
    from mlflow.exceptions import MlflowException

    model_id = model_uri.removeprefix("models:/")
    inputs = client.get_run(run_id).inputs
    shown = inputs.model_inputs or [] if inputs else []
    if model_id in [model.model_id for model in shown]:
        return
    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return
    client.log_inputs(run_id, models=[LoggedModelInput(model_id)])


def log_texts(to: Destination, artifact_uri: str, texts: Mapping[str, str]) -> None:
    """Send texts as artifacts, by their path."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, (path, text) in enumerate(texts.items()):
            file = Path(scratch, str(number), PurePosixPath(path).name)
            file.parent.mkdir()
            file.write_text(text, encoding="utf-8")
            _log_file(to, artifact_uri, file, path)


def log_files(to: Destination, artifact_uri: str, run: Folder, names: Iterable[str]) -> list[str]:
    """Send files of a run's folder as artifacts of the same paths.

    Returns:
        Those that are not there.
    """
    missing = []
    for name in names:
        content = run.read(name)
        if content is None:
            missing.append(name)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, PurePosixPath(name).name)
            file.write_bytes(content)
            _log_file(to, artifact_uri, file, name)
    return missing


def _log_file(to: Destination, artifact_uri: str, file: Path, path: str) -> None:
    # Not by the client, which would ask for each run's artifact location first.
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

    location = add_databricks_profile_info_to_artifact_uri(artifact_uri, to.uri)
    above = PurePosixPath(path).parent
    get_artifact_repository(location, tracking_uri=to.uri).log_artifact(
        str(file), None if above == PurePosixPath(".") else str(above)
    )


def _dataset_input(values: dict[str, str]) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=values["name"],
        digest=values["digest"],
        source_type="local",
        source=json.dumps({"uri": values["source"]}),
        profile=values["profile"],
    )
    context = values.get("context", "training")
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _experiment_id(to: Destination, request: dict[str, Any]) -> str:
    name = request["experiment"]
    if name not in to.experiment_ids:
        to.experiment_ids[name] = _ensure_experiment(to, name, request["artifact_root"])
    return to.experiment_ids[name]


def _ensure_experiment(to: Destination, name: str, artifact_root: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = to.client.get_experiment_by_name(name)
    if experiment is None:
        location = None
        if artifact_root is not None and not is_http(to.uri):
            location = str(Path(artifact_root, re.sub(r"[^A-Za-z0-9._-]", "_", name)))
        try:
            to.client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS)
        except MlflowException as error:  # another run may have been quicker
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = to.client.get_experiment_by_name(name)
    assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        raise Unsent(f"the MLflow experiment {name!r} was deleted: restore it first")
    return str(experiment.experiment_id)

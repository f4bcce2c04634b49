"""One run in MLflow: found or created, described, shown at its model."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.journal import Point
from orchestrator.mlflow_client import Unsent, is_http

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, RunInfo

logger = logging.getLogger(__name__)

KEY_TAG = "dcd.key"
"""Tag by which a run is found again when its id was lost in a crash."""

# Opens the experiment in the UI's view for training, not for language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}

# Limits of MLflow's batch call.
_MAX_METRICS = 1000
_MAX_PARAMS = 100


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
        logger.warning("MLflow lost run %s: sending it anew", run_id)
        return None
    if info.lifecycle_stage == "deleted":
        raise Unsent(f"the MLflow run {run_id} was deleted: restore it first")
    return info


def create_run(client: MlflowClient, request: dict[str, Any]) -> RunInfo:
    """Create the requested run, unless a crash came after its creation: then find it.

    Raises:
        Unsent: the experiment was deleted.
    """
    experiment_id = _ensure_experiment(client, request)
    found = client.search_runs(
        [experiment_id], f"tags.`{KEY_TAG}` = '{request['key']}'", max_results=1
    )
    if found:
        return found[0].info
    run = client.create_run(
        experiment_id,
        start_time=request["created_ms"],
        tags=request["tags"],
        run_name=request["run_name"],
    )
    return run.info


def describe_run(client: MlflowClient, run_id: str, request: dict[str, Any]) -> None:
    """Send parameters, tags, the data set's description and texts."""
    from mlflow.entities import Param, RunTag

    params = [Param(name, value) for name, value in request["params"].items()]
    for start in range(0, len(params), _MAX_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
    client.log_batch(run_id, tags=[RunTag(*item) for item in request["tags"].items()])
    if request["dataset"] is not None:
        client.log_inputs(run_id, datasets=[_dataset_input(request["dataset"])])
    for path, text in request["texts"].items():
        client.log_text(run_id, text, path)


def send_points(
    client: MlflowClient, run_id: str, points: Iterable[Point], *, model_id: str | None = None
) -> int:
    """Send points with the time they were measured at, which makes sending them twice harmless.

    Args:
        client: of the tracking server.
        run_id: the run.
        points: what to send.
        model_id: a model of the run that is to show them too.

    Returns:
        How many.
    """
    from mlflow.entities import Metric

    metrics = [
        Metric(point.name, point.value, point.timestamp_ms, point.step, model_id=model_id)
        for point in points
    ]
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])
    return len(metrics)


def end_run(client: MlflowClient, run_id: str, finish: dict[str, Any]) -> None:
    """Send the last tags and the status."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(*item) for item in finish["tags"].items()])
    client.set_terminated(run_id, finish["status"], finish["time_ms"])


def _dataset_input(values: dict[str, str]) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=values["name"],
        digest=values["digest"],
        source_type="local",
        source=json.dumps({"uri": values["source"]}),
        profile=values["profile"],
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _ensure_experiment(client: MlflowClient, request: dict[str, Any]) -> str:
    from mlflow.exceptions import MlflowException

    name = request["experiment"]
    if client.get_experiment_by_name(name) is None:
        root = request["artifact_root"]
        location = None
        if root is not None and not is_http(request["uri"]):
            location = str(Path(root, re.sub(r"[^A-Za-z0-9._-]", "_", name)))
        try:
            client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS)
        except MlflowException as error:  # another run may have been quicker
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        raise Unsent(f"the MLflow experiment {name!r} was deleted: restore it first")
    return str(experiment.experiment_id)

"""Registered students: who is champion, and fetching one back."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.errors import UserError
from orchestrator.mlflow_client import Unreachable, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)

CHAMPION = "champion"
SELECTION_METRIC = "val/top1"
"""Decides who is champion; never a test metric, which would then be no test any more."""

MODEL_NAME = "student"
"""Of every student's model in MLflow."""

_EXTRA_FILES = "extra_files"
_VALUE_TAG = "dcd.value"
# MLflow stores no such thing itself: a version's `model_id` is None.
_MODEL_TAG = "dcd.model"
_VERSIONS_TAG = "mlflow.modelVersions"


class Score(NamedTuple):
    """What a model version scored, and on what."""

    metric: str
    """Metric name; more is better."""
    value: float
    fingerprint: str
    """Fingerprint of the dataset."""
    split_seed: str
    """Seed of its splits."""


class Fetched(NamedTuple):
    """A package from MLflow."""

    folder: str
    """Where it is now."""
    run_id: str | None
    """The run that has trained the student."""
    model_uri: str | None
    """``models:/m-…``, which unlike an alias always names this student."""


def register_student(
    client: MlflowClient,
    model_id: str,
    name: str,
    *,
    run_id: str,
    score: Score,
    lineage: Mapping[str, str],
) -> str:
    """Register a logged model once, and make it champion when it is better.

    The alias moves only to a higher value of the same metric on the same images and split, so a
    champion that was measured otherwise stays.

    Args:
        client: of the tracking server.
        model_id: the logged model's.
        name: to register it under.
        run_id: the run that has trained it.
        score: what it scored.
        lineage: where it comes from, as tags of the version.

    Returns:
        The version.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not "models:/m-…": a database store would look that up at MLflow's global tracking URI.
    source = client.get_logged_model(model_id).artifact_location
    versions = client.search_model_versions(f"name = '{name}'")
    numbers = [str(version.version) for version in versions if version.source == source]
    if numbers:
        number = numbers[0]
    else:
        created = client.create_model_version(
            name,
            source,
            run_id=run_id,
            model_id=model_id,
            tags={
                **lineage,
                **_conditions(score),
                _VALUE_TAG: repr(score.value),
                _MODEL_TAG: f"models:/{model_id}",
            },
        )
        number = str(created.version)
    _show_version_at_model(client, model_id, name, number)
    if _beats_champion(client, name, score):
        client.set_registered_model_alias(name, CHAMPION, number)
        logger.info("%s version %s is champion: %s %.2f", name, number, *score[:2])
    return number


def fetch_package(uri: str, into: Path, *, tracking_uri: str | None) -> Fetched:
    """Download the package inside an MLflow model.

    Args:
        uri: ``models:/name@alias``, ``models:/name/1``, ``models:/m-…``, ``runs:/id`` or
            ``runs:/id/student``.
        into: an empty folder.
        tracking_uri: where MLflow is, when not where MLflow itself or the defaults say.

    Raises:
        UserError: there is no such model, or it was not made by this program.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from orchestrator.places import tracking_place

    if tracking_uri is None:
        own = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        tracking_uri = tracking_place(own)[0]
    try:
        with connect(tracking_uri) as client:
            found = _find(client, uri)
            names = [
                item.path.rsplit("/", 1)[-1]
                for item in mlflow.artifacts.list_artifacts(
                    found.location, tracking_uri=tracking_uri
                )
            ]
            if _EXTRA_FILES not in names:
                raise UserError(f"{uri}: this MLflow model brings no rebuildable network")
            folder = mlflow.artifacts.download_artifacts(
                f"{found.location}/{_EXTRA_FILES}", dst_path=str(into), tracking_uri=tracking_uri
            )
            return Fetched(folder, found.run_id, found.model_uri)
    except Unreachable as error:
        raise UserError(f"{uri}: {error}") from error
    except MlflowException as error:
        raise UserError(f"{uri}: MLflow says: {str(error).splitlines()[0]}") from error


def _show_version_at_model(client: MlflowClient, model_id: str, name: str, number: str) -> None:
    """Link the model's page to the version; a server has done it already, a database has not."""
    noted = json.loads(client.get_logged_model(model_id).tags.get(_VERSIONS_TAG, "[]"))
    if not any(item["name"] == name and str(item["version"]) == number for item in noted):
        noted.append({"name": name, "version": number})
        client.set_logged_model_tags(model_id, {_VERSIONS_TAG: json.dumps(noted)})


def _beats_champion(client: MlflowClient, name: str, score: Score) -> bool:
    tags = _champion_tags(client, name)
    if tags is None:
        return not math.isnan(score.value)
    if any(tags.get(key) != value for key, value in _conditions(score).items()):
        logger.warning(
            "the champion of %s was measured by another metric, on other images or on another "
            "split: it stays champion",
            name,
        )
        return False
    return score.value > float(tags[_VALUE_TAG])


def _champion_tags(client: MlflowClient, name: str) -> dict[str, str] | None:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_model_version_by_alias(name, CHAMPION).tags)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _conditions(score: Score) -> dict[str, str]:
    """What must be equal for two scores to be comparable, as tags of a model version."""
    return {
        "dcd.metric": score.metric,
        "data.fingerprint": score.fingerprint,
        "data.split_seed": score.split_seed,
    }


class _Found(NamedTuple):
    location: str
    """Where a model's files are."""
    run_id: str | None
    model_uri: str | None


def _find(client: MlflowClient, uri: str) -> _Found:
    """Find a model; by hand, for MLflow would ask its global server."""
    kind, _, rest = uri.partition(":/")
    if kind == "runs":
        run_id, _, name = rest.partition("/")
        run = client.get_run(run_id)
        outputs = run.outputs.model_outputs if run.outputs else []
        models = [client.get_logged_model(output.model_id) for output in outputs]
        models = [model for model in models if model.name == (name or MODEL_NAME)]
        if models:
            return _of_model(max(models, key=lambda m: m.creation_timestamp))
        return _Found(f"{run.info.artifact_uri}/{name or MODEL_NAME}", run_id, None)
    if "@" not in rest and "/" not in rest:
        return _of_model(client.get_logged_model(rest))
    if "@" in rest:
        name, _, alias = rest.partition("@")
        version = client.get_model_version_by_alias(name, alias)
    else:
        name, _, number = rest.partition("/")
        version = client.get_model_version(name, number)
    location = str(client.get_model_version_download_uri(name, version.version))
    return _Found(location, version.run_id or None, version.tags.get(_MODEL_TAG))


def _of_model(model: LoggedModel) -> _Found:
    run_id = model.source_run_id or None
    return _Found(str(model.artifact_location), run_id, f"models:/{model.model_id}")

"""`dcd doctor`: does each part that a run needs work here?"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from orchestrator.environment import package_versions
from orchestrator.errors import OrchestratorError
from orchestrator.mlflow_client import without_password
from orchestrator.places import Places, find_places
from orchestrator.resources import joins_cluster
from orchestrator.spec import Experiment
from orchestrator.storage import Folder, check_writable


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    ok: bool
    text: str


def examine(experiment: Experiment) -> Iterator[Finding]:
    """Look at everything, the quick things first.

    What it writes it removes again; MLflow keeps a deleted experiment until its `mlflow gc`.
    """
    versions = package_versions()
    absent = [name for name, number in versions.items() if number == "absent"]
    yield Finding("versions", not absent, ", ".join(f"{n} {v}" for n, v in versions.items()))
    yield Finding("devices", True, _devices())
    places = find_places(experiment)
    yield _storage(places)
    yield from _ray(experiment, places)


def _devices() -> str:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{os.cpu_count()} CPU cores, {', '.join(gpus) if gpus else 'no GPU'}"


def _storage(places: Places) -> Finding:
    try:
        check_writable(places.storage, setting="storage.path")
    except OrchestratorError as error:
        return Finding("storage", False, str(error))
    return Finding("storage", True, f"{places.storage.location} is writable")


def _ray(experiment: Experiment, places: Places) -> Iterator[Finding]:
    """Ray, and what only a worker can tell: tracking and storage as seen from there."""
    import ray

    from orchestrator.ray_session import ray_session

    try:
        with ray_session():
            nodes = [node for node in ray.nodes() if node["Alive"]]
            total = ray.cluster_resources()
            where = "cluster of RAY_ADDRESS" if joins_cluster() else "started on this machine"
            yield Finding(
                "ray",
                True,
                f"{where}: {len(nodes)} nodes, {total.get('CPU', 0):g} CPU, "
                f"{total.get('GPU', 0):g} GPU",
            )
            yield _tracking_from_worker(experiment, places)
            yield _storage_from_nodes(places, [node["NodeID"] for node in nodes])
    except (RuntimeError, OSError, ray.exceptions.RayError) as error:
        yield Finding("ray", False, f"{type(error).__name__}: {error}".splitlines()[0])


def _tracking_from_worker(experiment: Experiment, places: Places) -> Finding:
    import ray

    if places.tracking_uri is None:
        return Finding("mlflow", True, "tracking is off")
    task = ray.remote(num_cpus=0)(_try_tracking)
    error = ray.get(task.remote(places.tracking_uri))
    text = f"{without_password(places.tracking_uri)}: " + (
        error or "a worker reached it, wrote, and cleaned up"
    )
    return Finding("mlflow", error is None, text)


def _try_tracking(uri: str) -> str | None:
    """Create and delete an experiment; the error's first line, or None."""
    os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="5")
    from mlflow import MlflowClient

    try:
        client = MlflowClient(uri)
        experiment_id = client.create_experiment(f"dcd-doctor-{uuid.uuid4().hex[:8]}")
        client.delete_experiment(experiment_id)
    except Exception as error:  # whatever it is, it is what the user wants to know
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _storage_from_nodes(places: Places, node_ids: list[str]) -> Finding:
    """Whether every node sees a file that the driver wrote."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = f".dcd-doctor-{uuid.uuid4().hex[:8]}"
    places.storage.write(name, b"seen")
    try:
        look: Any = ray.remote(num_cpus=0)(_sees)
        answers = ray.get(
            [
                look.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
                ).remote(places.storage.location, name)
                for node_id in node_ids
            ]
        )
    finally:
        places.storage.delete(name)
    blind = answers.count(False)
    if blind:
        return Finding(
            "storage on nodes",
            False,
            f"{blind} of {len(answers)} nodes do not see {places.storage.location}: "
            "set storage.path to a shared mount or a URI",
        )
    return Finding("storage on nodes", True, f"all {len(answers)} nodes see it")


def _sees(location: str, name: str) -> bool:
    return Folder(location).read(name) == b"seen"

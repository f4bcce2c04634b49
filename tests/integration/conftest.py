"""One Ray of made-up CPUs, and one MLflow server, per test module that asks for it."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import digits
import pytest
from mlflow_server import MlflowServer


@pytest.fixture(scope="module", autouse=True)
def _alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """No two processes of pytest-xdist, which share a folder, run a Ray at once."""
    starts_ray = any(mark.name == "ray" for mark in request.node.iter_markers())
    if "PYTEST_XDIST_WORKER" not in os.environ or not starts_ray:
        yield
        return
    with (tmp_path_factory.getbasetemp().parent / "ray.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.fail("two processes run tests that start Ray: see tests/conftest.py")
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray with four CPUs, whatever this machine has."""
    import ray

    from orchestrator.ray_session import DRIVER_ENVIRONMENT, end_ray

    kept = dict(os.environ)
    os.environ.update(DRIVER_ENVIRONMENT)
    os.environ.pop("RAY_ADDRESS", None)
    context = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
    yield os.environ["RAY_ADDRESS"]
    end_ray()
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server."""
    with MlflowServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's checkpoint."""
    return digits.save_teacher(tmp_path_factory.mktemp("teacher"))

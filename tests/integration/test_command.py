"""The command as a user types it: killed, stopped, resumed, as a cluster's job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import digits
import psutil
import pytest
from mlflow import MlflowClient
from mlflow_server import MlflowServer
from service import free_port

from orchestrator import load_student

pytestmark = [
    pytest.mark.ray,
    pytest.mark.mlflow,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_a_killed_driver_leaves_no_process_and_its_run_goes_on_with_the_same_numbers(
    workplace: Path, teacher: Path
) -> None:
    # Enough epochs that none of the machines this runs on is through before the kill.
    updates = {"scaling.workers": 2, "train.epochs": 60}
    spec = digits.write(workplace / "run.yaml", digits.experiment(teacher, updates))
    driver = digits.start(workplace, "distill", str(spec))
    folder = workplace / "dcd_runs" / "run"
    digits.wait_until(lambda: 2 in digits.epochs(folder), what="second epoch")
    below = digits.descendants(driver.pid)
    assert any("raylet" in process.name() for process in below)
    # Ray's two agents try to report the death of their head for a minute before they go too.
    training = [process for process in below if "Agent" not in "".join(process.cmdline())]
    driver.kill()
    driver.wait()
    digits.wait_until_gone(training, timeout=15)
    assert max(digits.epochs(folder)) < 60
    output = digits.run(workplace, "distill", str(spec))
    assert "going on after epoch" in output

    other = digits.write(
        workplace / "other.yaml", digits.experiment(teacher, {"name": "other", **updates})
    )
    digits.run(workplace, "distill", str(other))
    assert digits.epochs(folder) == digits.epochs(workplace / "dcd_runs" / "other")
    assert "already finished" in digits.run(workplace, "distill", str(spec))
    digits.wait_until_gone(below, timeout=120)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_in_order_and_names_the_way_on(
    workplace: Path, teacher: Path, number: signal.Signals
) -> None:
    updates = {"scaling.workers": 1, "train.epochs": 500, "tracking.enabled": True}
    spec = digits.write(workplace / "run.yaml", digits.experiment(teacher, updates))
    driver = digits.start(workplace, "distill", str(spec))
    folder = workplace / "dcd_runs" / "run"
    digits.wait_until(lambda: 1 in digits.epochs(folder), what="first epoch")
    below = digits.descendants(driver.pid)
    driver.send_signal(number)
    assert driver.wait(30) == 128 + number
    digits.wait_until_gone(below)
    output = (workplace / "output.txt").read_text()
    assert "stopped; go on with: dcd distill --resume run" in output
    assert "Traceback" not in output
    assert json.loads((folder / "state.json").read_text())["state"] == "interrupted"
    assert list((folder / "checkpoints").glob("epoch_*.json"))


def test_every_point_is_there_once_when_the_tracking_server_dies_and_comes_back(
    workplace: Path, teacher: Path
) -> None:
    with MlflowServer(workplace / "server") as server:
        updates = {
            "scaling.workers": 1,
            "train.epochs": 60,
            "tracking.enabled": True,
            "tracking.uri": server.uri,
            "tracking.register": "digit-student",
        }
        spec = digits.write(workplace / "run.yaml", digits.experiment(teacher, updates))
        driver = digits.start(workplace, "distill", str(spec))
        folder = workplace / "dcd_runs" / "run"
        digits.wait_until(lambda: 3 in digits.epochs(folder), what="third epoch")
        server.kill()
        reached = max(digits.epochs(folder))
        digits.wait_until(
            lambda: max(digits.epochs(folder)) > reached + 3, what="epochs without a server"
        )
        server.start()
        assert driver.wait(240) == 0, (workplace / "output.txt").read_text()
        digits.run(workplace, "sync", "run")

        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("dcd")
        assert experiment is not None
        (tracked,) = client.search_runs([experiment.experiment_id])
        assert tracked.info.status == "FINISHED"
        expected: dict[str, dict[int, float]] = {}
        for point in digits.points(folder):
            expected.setdefault(point.name, {})[point.step] = point.value
        assert set(tracked.data.metrics) == set(expected)
        for name, values in expected.items():
            history = client.get_metric_history(tracked.info.run_id, name)
            assert sorted((m.step, m.value) for m in history) == sorted(values.items()), name
        version = client.get_model_version_by_alias("digit-student", "champion")
        assert version.run_id == tracked.info.run_id


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """A cluster head as `ray start` makes one; its dashboard's address."""
    # Sockets below the folder: their path has a limit of 107 characters.
    folder = Path("/tmp") / f"dcd-ray-{os.getpid()}"
    port, dashboard = free_port(), free_port()
    environment = digits.environment(
        HOME=str(tmp_path / "home"),
        RAY_AUTH_MODE="token",
        PYTHONPATH=str(digits.REPOSITORY),
    )
    ray = Path(sys.executable).parent / "ray"
    before = {process.pid for process in psutil.process_iter()}
    subprocess.run([ray, "get-auth-token", "--generate"], env=environment, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    subprocess.run(
        [ray, "start", "--head", f"--port={port}", "--dashboard-host=127.0.0.1",
         f"--dashboard-port={dashboard}", "--num-cpus=2", f"--temp-dir={folder}",
         "--disable-usage-stats"],
        env=environment, check=True, stdout=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        started = [
            process
            for process in psutil.process_iter(["cmdline"])
            if process.pid not in before
            and any(str(folder) in part for part in process.info["cmdline"] or ())
        ]
        below = [child for process in started for child in digits.descendants(process.pid)]
        for process in started:
            process.terminate()
        _, alive = psutil.wait_procs(started + below, timeout=10)
        for process in alive:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_same_command_runs_as_a_job_and_leaves_its_run_outside_the_jobs_folder(
    head: str, workplace: Path, tmp_path: Path, teacher: Path
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for name in ("dcd_core", "orchestrator", "search_spaces"):
        shutil.copytree(
            digits.REPOSITORY / name, package / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    updates = {"scaling.workers": 2, "train.epochs": 2, "tracking.enabled": True}
    digits.write(package / "run.yaml", digits.experiment(teacher, updates))
    environment = digits.environment(
        HOME=str(tmp_path / "home"), RAY_AUTH_MODE="token", RAY_API_SERVER_ADDRESS=head
    )
    ray = Path(sys.executable).parent / "ray"
    job = subprocess.run(
        [ray, "job", "submit", "--working-dir", ".", "--",
         sys.executable, "-m", "orchestrator", "distill", "run.yaml"],
        cwd=package, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    home = tmp_path / "home" / "dcd"
    assert sorted(digits.epochs(home / "dcd_runs" / "run")) == [0, 1, 2]
    assert load_student(str(home / "dcd_runs" / "run"))
    assert str(home / "dcd_runs" / "run") in job.stdout + job.stderr
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dcd")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert client.search_logged_models([experiment.experiment_id])

    stopped = subprocess.run(
        [ray, "job", "submit", "--no-wait", "--submission-id", "stop-me", "--working-dir", ".",
         "--", sys.executable, "-m", "orchestrator", "distill", "run.yaml", "--new",
         "--set", "train.epochs=1000"],
        cwd=package, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert stopped.returncode == 0, stopped.stderr
    second = home / "dcd_runs" / "run-2"
    digits.wait_until(lambda: 1 in digits.epochs(second), what="first epoch of the second job")
    subprocess.run([ray, "job", "stop", "stop-me"], env=environment, check=True, timeout=120,
                   capture_output=True)  # fmt: skip
    state = second / "state.json"
    digits.wait_until(
        lambda: json.loads(state.read_text())["state"] == "interrupted", what="an orderly stop"
    )

"""Tracking against a real MLflow server: nothing lost, nothing twice, nobody waits."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow_server import MlflowServer
from service import free_port

from orchestrator.journal import Journal
from orchestrator.storage import Folder
from orchestrator.tracking import (
    SyncReport,
    Tracker,
    default_tracking_uri,
    finish_request,
    has_pending,
    pending_runs,
    reopen,
    request_tracking,
    retarget,
    sync_run,
)

pytestmark = pytest.mark.mlflow


@pytest.fixture(autouse=True)
def _artifacts_from_the_server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests read artifacts with MLflow's own functions, which ask its global server."""
    if "server" in request.fixturenames:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server").uri)


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "runs" / "digits"))


def request(run: Folder, uri: str, **changes: Any) -> str:
    """Request tracking in an experiment of this run's own; returns the experiment's name."""
    experiment = f"experiment {uuid.uuid4().hex[:8]}"
    arguments: dict[str, Any] = {
        "uri": uri,
        "experiment": experiment,
        "run_name": "digits",
        "tags": {"git.commit": "abc123"},
        "params": {"train.epochs": 3, "teacher": None},
        "texts": {"spec.yaml": "name: digits\n"},
    }
    request_tracking(run, **(arguments | changes))
    return str((arguments | changes)["experiment"])


def finish(run: Folder, status: Any = "FINISHED", **metrics: float) -> None:
    finish_request(run, status=status, metrics=metrics, tags={"end": "reached"}, student=False)


def points(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def runs_of(uri: str, experiment: str) -> list[Any]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def wait_for(condition: Any, *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_everything_that_was_written_down_arrives(server: MlflowServer, run: Folder) -> None:
    params = {f"section.field_{i}": i for i in range(250)}  # MLflow takes 100 at a time
    request(run, server.uri, params=params, texts={"spec.yaml": "a: 1\n", "notes/env.txt": "é"})
    Journal(run).append({"train/loss": 2.0, "val/top1": 40.0}, step=1, timestamp_ms=1111)
    Journal(run).append({"train/loss": 1.5, "val/top1": 50.0}, step=2, timestamp_ms=2222)
    finish(run, **{"test/top1": 48.0})

    report = sync_run(run)

    assert report.pending is None
    assert report.sent_points == 5
    assert report.run_id is not None
    client = MlflowClient(server.uri)
    stored = client.get_run(report.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "digits"
    assert stored.info.start_time == run.read_json("tracking/request.json")["created_ms"]
    assert stored.info.end_time == run.read_json("tracking/finish.json")["time_ms"]
    assert stored.data.params == {name: str(value) for name, value in params.items()}
    assert stored.data.tags["git.commit"] == "abc123"
    assert stored.data.tags["end"] == "reached"
    loss = client.get_metric_history(report.run_id, "train/loss")
    assert [(m.step, m.value, m.timestamp) for m in loss] == [(1, 2.0, 1111), (2, 1.5, 2222)]
    assert points(server.uri, report.run_id, "test/top1") == [(2, 48.0)]
    assert mlflow.artifacts.load_text(f"{stored.info.artifact_uri}/spec.yaml") == "a: 1\n"
    assert mlflow.artifacts.load_text(f"{stored.info.artifact_uri}/notes/env.txt") == "é"


def test_nan_arrives_as_nan_and_infinity_as_the_largest_number(
    server: MlflowServer, run: Folder
) -> None:
    request(run, server.uri)
    Journal(run).append({"train/loss": math.nan, "a": math.inf, "b": -math.inf}, step=1)

    report = sync_run(run)

    assert report.pending is None
    assert report.run_id is not None
    [(_, loss)] = points(server.uri, report.run_id, "train/loss")
    assert math.isnan(loss)
    # MLflow's databases hold no infinity.
    assert points(server.uri, report.run_id, "a") == [(1, sys.float_info.max)]
    assert points(server.uri, report.run_id, "b") == [(1, -sys.float_info.max)]


def test_a_second_sync_sends_only_what_is_new(server: MlflowServer, run: Folder) -> None:
    experiment = request(run, server.uri)
    Journal(run).append({"train/loss": 2.0}, step=1)
    assert sync_run(run).sent_points == 1
    assert sync_run(run).sent_points == 0
    Journal(run).append({"train/loss": 1.0}, step=2)
    report = sync_run(run)

    assert report.sent_points == 1
    assert report.run_id is not None
    assert points(server.uri, report.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]
    assert len(runs_of(server.uri, experiment)) == 1


def test_more_points_than_one_batch_holds_arrive_once_even_when_sent_twice(
    server: MlflowServer, run: Folder
) -> None:
    request(run, server.uri)
    Journal(run).append({f"metric_{i:04d}": float(i) for i in range(1501)}, step=1)
    Journal(run).append({"nan": math.nan, "inf": math.inf}, step=1)
    first = sync_run(run)
    # As when the acknowledgement was lost in a crash.
    run.write_json("tracking/state.json", {"uri": server.uri, "attempted": True})
    second = sync_run(run)

    assert (first.pending, second.pending) == (None, None)
    assert (first.sent_points, second.sent_points) == (1503, 1503)
    assert second.run_id is not None
    assert second.run_id == first.run_id
    for name in ("metric_0000", "metric_1000", "metric_1500", "nan", "inf"):
        assert len(points(server.uri, second.run_id, name)) == 1


def test_a_crash_between_creating_the_run_and_noting_its_id_makes_no_second_run(
    server: MlflowServer, run: Folder
) -> None:
    experiment = request(run, server.uri)
    Journal(run).append({"train/loss": 2.0}, step=1)
    crashing = textwrap.dedent(
        """
        import os, sys
        from orchestrator.storage import Folder
        from orchestrator.tracking import sync_run
        notes = []
        def write_json(folder, name, value, real=Folder.write_json):
            notes.append(name)
            if len(notes) == 2:  # the first says that the run is about to be created
                os._exit(9)
            real(folder, name, value)
        Folder.write_json = write_json
        sync_run(Folder(sys.argv[1]))
        """
    )
    died = subprocess.run([sys.executable, "-c", crashing, run.location], timeout=120)
    assert died.returncode == 9
    assert run.read_json("tracking/state.json") == {"uri": server.uri, "attempted": True}
    assert len(runs_of(server.uri, experiment)) == 1

    report = sync_run(run)

    assert report.pending is None
    assert [found.info.run_id for found in runs_of(server.uri, experiment)] == [report.run_id]


def test_a_resumed_run_goes_on_in_its_mlflow_run(server: MlflowServer, run: Folder) -> None:
    experiment = request(run, server.uri)
    Journal(run).append({"train/loss": 2.0}, step=1)
    finish(run, "FAILED")
    failed = sync_run(run)
    [stored] = runs_of(server.uri, experiment)
    assert stored.info.status == "FAILED"

    reopen(run)
    assert pending_runs(Folder(str(Path(run.location).parent))) == ["digits"]
    sync_run(run)
    [stored] = runs_of(server.uri, experiment)
    assert stored.info.status == "RUNNING"

    Journal(run).append_history([(1, {"train/loss": 2.5}), (2, {"train/loss": 1.0})])
    finish(run)
    report = sync_run(run)
    [stored] = runs_of(server.uri, experiment)
    assert stored.info.status == "FINISHED"
    assert report.run_id is not None
    assert report.run_id == failed.run_id
    assert points(server.uri, report.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]


def test_requesting_again_keeps_run_and_parameters_and_takes_the_new_tags(
    server: MlflowServer, run: Folder
) -> None:
    experiment = request(run, server.uri, params={"workers": 1}, tags={"git.commit": "old"})
    sync_run(run)
    request(
        run, server.uri, experiment=experiment, params={"workers": 2}, tags={"git.commit": "new"}
    )
    report = sync_run(run)

    assert report.pending is None
    [stored] = runs_of(server.uri, experiment)
    assert stored.data.params == {"workers": "1"}
    assert stored.data.tags["git.commit"] == "new"


def test_a_run_moves_whole_to_another_tracking_uri(
    server: MlflowServer, run: Folder, tmp_path: Path
) -> None:
    request(run, default_tracking_uri(tmp_path), artifact_root=str(tmp_path / "artifacts"))
    Journal(run).append({"train/loss": 2.0}, step=1)
    assert sync_run(run).pending is None
    request(run, server.uri)

    report = sync_run(run)

    assert report.pending is None
    assert report.run_id is not None
    assert points(server.uri, report.run_id, "train/loss") == [(1, 2.0)]


def test_a_finished_run_can_be_sent_elsewhere_when_its_server_never_comes(
    server: MlflowServer, run: Folder
) -> None:
    request(run, f"http://127.0.0.1:{free_port()}")
    Journal(run).append({"train/loss": 2.0}, step=1)
    finish(run, **{"test/top1": 90.0})
    assert sync_run(run).pending is not None
    retarget(run, uri=server.uri, artifact_root=None)

    report = sync_run(run)

    assert report.pending is None
    assert report.run_id is not None
    assert points(server.uri, report.run_id, "train/loss") == [(1, 2.0)]
    assert MlflowClient(server.uri).get_run(report.run_id).info.status == "FINISHED"
    retarget(run, uri=server.uri, artifact_root=None)  # the same place again changes nothing
    assert sync_run(run) == report._replace(sent_points=0)


def test_a_relative_database_is_the_one_of_the_working_directory_at_the_request(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("requested", "sent"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "requested")
    request(run, "sqlite:///mlflow.db", artifact_root="artifacts")
    monkeypatch.chdir(tmp_path / "sent")

    assert sync_run(run).pending is None

    assert (tmp_path / "requested" / "mlflow.db").exists()
    assert (tmp_path / "requested" / "artifacts").exists()
    assert list((tmp_path / "sent").iterdir()) == []


def test_values_that_are_too_long_for_mlflow_are_cut_and_hold_nothing_up(
    server: MlflowServer, run: Folder
) -> None:
    experiment = request(run, server.uri, params={"a": "x" * 20_000}, tags={"b": "y" * 20_000})
    finish_request(run, status="FAILED", metrics={}, tags={"error": "z" * 20_000}, student=False)

    assert sync_run(run).pending is None

    [stored] = runs_of(server.uri, experiment)
    assert stored.info.status == "FAILED"
    assert stored.data.params["a"].startswith("xxx")
    assert stored.data.tags["error"].startswith("zzz")


def test_the_same_request_again_sends_nothing_again(server: MlflowServer, run: Folder) -> None:
    experiment = request(run, server.uri)
    assert sync_run(run).pending is None
    request(run, server.uri, experiment=experiment)
    assert not has_pending(run)
    request(run, server.uri, experiment=experiment, tags={"git.commit": "other"})
    assert has_pending(run)


def test_a_run_that_comes_back_to_its_first_place_goes_on_there(
    server: MlflowServer, run: Folder, tmp_path: Path
) -> None:
    experiment = request(run, server.uri)
    Journal(run).append({"train/loss": 2.0}, step=1)
    first = sync_run(run)
    retarget(run, uri=default_tracking_uri(tmp_path), artifact_root=str(tmp_path / "artifacts"))
    assert sync_run(run).pending is None
    Journal(run).append({"train/loss": 1.0}, step=2)
    retarget(run, uri=server.uri, artifact_root=None)

    report = sync_run(run)

    assert (report.pending, report.run_id) == (None, first.run_id)
    assert len(runs_of(server.uri, experiment)) == 1
    assert report.run_id is not None
    assert points(server.uri, report.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]


def test_files_of_the_run_become_artifacts_when_it_ends_and_again_when_it_ends_anew(
    server: MlflowServer, run: Folder
) -> None:
    request(run, server.uri)
    run.write("report.md", "# first")
    run.write("figures/curve.png", b"\x89PNG")
    names = ["report.md", "figures/curve.png"]
    ending: dict[str, Any] = {"status": "FINISHED", "metrics": {}, "tags": {}, "student": False}
    finish_request(run, **ending, artifacts=names)
    report = sync_run(run)

    assert report.pending is None
    assert report.run_id is not None
    uri = MlflowClient(server.uri).get_run(report.run_id).info.artifact_uri
    assert mlflow.artifacts.load_text(f"{uri}/report.md") == "# first"
    figure = mlflow.artifacts.download_artifacts(f"{uri}/figures/curve.png")
    assert Path(figure).read_bytes() == b"\x89PNG"

    run.write("report.md", "# second")
    finish_request(run, **ending, artifacts=names)
    assert sync_run(run).pending is None
    assert mlflow.artifacts.load_text(f"{uri}/report.md") == "# second"


def test_files_of_a_remote_folder_become_artifacts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow.fs import FileSystem, SubTreeFileSystem

    run = Folder("s3://bucket/runs/digits")
    local, root = FileSystem.from_uri(tmp_path.as_uri())
    store = SubTreeFileSystem(root, local)
    monkeypatch.setattr(Folder, "filesystem", lambda folder: (store, folder.location[5:]))
    uri = default_tracking_uri(tmp_path)
    experiment = request(run, uri, artifact_root=str(tmp_path / "artifacts"))
    run.write("figures/curve.png", b"\x89PNG")
    finish_request(
        run,
        status="FINISHED",
        metrics={},
        tags={},
        student=False,
        artifacts=["figures/curve.png"],
    )

    assert sync_run(run).pending is None

    [stored] = runs_of(uri, experiment)
    assert Path(stored.info.artifact_uri, "figures/curve.png").read_bytes() == b"\x89PNG"


def test_a_file_that_is_not_there_is_reported_and_the_run_has_ended_all_the_same(
    server: MlflowServer, run: Folder
) -> None:
    experiment = request(run, server.uri)
    finish_request(
        run, status="FINISHED", metrics={}, tags={}, student=False, artifacts=["report.md"]
    )

    pending = sync_run(run).pending

    assert pending == "report.md should be an artifact and is not in the run's folder"
    [stored] = runs_of(server.uri, experiment)
    assert stored.info.status == "FINISHED"


def test_two_syncs_at_once_make_one_run(server: MlflowServer, run: Folder) -> None:
    experiment = request(run, server.uri)
    Journal(run).append({"train/loss": 2.0}, step=1)
    threads = [threading.Thread(target=sync_run, args=[run]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    [stored] = runs_of(server.uri, experiment)
    assert points(server.uri, stored.info.run_id, "train/loss") == [(1, 2.0)]
    assert sync_run(run).pending is None


def test_what_was_deleted_in_mlflow_is_reported_and_goes_on_after_it_is_restored(
    server: MlflowServer, run: Folder
) -> None:
    client = MlflowClient(server.uri)
    experiment = request(run, server.uri)
    run_id = sync_run(run).run_id
    assert run_id is not None
    client.delete_run(run_id)
    Journal(run).append({"train/loss": 2.0}, step=1)
    report = sync_run(run)
    assert report.pending is not None
    assert "was deleted" in report.pending

    client.restore_run(run_id)
    assert sync_run(run).pending is None
    assert len(runs_of(server.uri, experiment)) == 1


def test_a_deleted_experiment_is_reported(server: MlflowServer, run: Folder) -> None:
    client = MlflowClient(server.uri)
    experiment_id = client.create_experiment("to be deleted")
    client.delete_experiment(experiment_id)
    request(run, server.uri, experiment="to be deleted")

    report = sync_run(run)

    assert report.pending is not None
    assert "'to be deleted' was deleted" in report.pending


def test_a_run_that_mlflow_lost_is_sent_anew(server: MlflowServer, run: Folder) -> None:
    experiment = request(run, server.uri)
    Journal(run).append({"train/loss": 2.0}, step=1)
    sync_run(run)
    state = run.read_json("tracking/state.json")
    run.write_json("tracking/state.json", state | {"run_id": "f" * 32})
    [stored] = runs_of(server.uri, experiment)
    MlflowClient(server.uri).set_tag(stored.info.run_id, "dcd.key", "of another run")
    Journal(run).append({"train/loss": 1.0}, step=2)

    report = sync_run(run)

    assert report.pending is None
    assert report.run_id is not None
    assert report.run_id not in ("f" * 32, stored.info.run_id)
    assert points(server.uri, report.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]


def test_a_local_database_keeps_its_artifacts_beside_it_and_nothing_in_the_working_directory(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working_directory = tmp_path / "elsewhere"
    working_directory.mkdir()
    monkeypatch.chdir(working_directory)
    uri = default_tracking_uri(tmp_path / "not made yet")
    assert uri == f"sqlite:///{tmp_path}/not made yet/mlflow.db"
    experiment = request(run, uri, artifact_root=str(tmp_path / "mlartifacts"))

    report = sync_run(run)

    assert report.pending is None
    [stored] = runs_of(uri, experiment)
    assert Path(stored.info.artifact_uri, "spec.yaml").read_text() == "name: digits\n"
    assert Path(stored.info.artifact_uri).is_relative_to(tmp_path / "mlartifacts")
    assert list(working_directory.iterdir()) == []


def test_syncing_leaves_environment_mlflow_and_terminal_as_they_were(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    environment, uri = dict(os.environ), mlflow.get_tracking_uri()
    request(run, default_tracking_uri(tmp_path), artifact_root=str(tmp_path / "artifacts"))
    finish(run)
    capfd.readouterr()

    assert sync_run(run).pending is None

    assert dict(os.environ) == environment
    assert mlflow.get_tracking_uri() == uri
    assert mlflow.active_run() is None
    assert capfd.readouterr() == ("", "")


def test_a_server_prints_no_links_through_us(
    server: MlflowServer, run: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    request(run, server.uri)
    finish(run)
    capfd.readouterr()
    assert sync_run(run).pending is None
    assert capfd.readouterr() == ("", "")


def test_pending_runs_are_those_with_something_unsent(server: MlflowServer, tmp_path: Path) -> None:
    storage = Folder(str(tmp_path / "runs"))
    for name in ("sent", "unsent"):
        request(storage / name, server.uri)
        Journal(storage / name).append({"train/loss": 2.0}, step=1)
    Journal(storage / "untracked").append({"train/loss": 2.0}, step=1)
    storage.write("notes.txt", "a file beside the runs")
    assert pending_runs(storage) == ["sent", "unsent"]

    assert sync_run(storage / "sent").pending is None
    assert pending_runs(storage) == ["unsent"]

    Journal(storage / "sent").append({"train/loss": 1.0}, step=2)
    assert pending_runs(storage) == ["sent", "unsent"]


def test_a_run_without_tracking_has_nothing_to_send_and_gets_no_files(run: Folder) -> None:
    Journal(run).append({"train/loss": 2.0}, step=1)

    assert sync_run(run) == SyncReport(None, 0, None, None)
    assert run.names() == ["journal"]


def test_a_tracker_sends_while_training_goes_on(server: MlflowServer, run: Folder) -> None:
    experiment = request(run, server.uri)
    tracker = Tracker(run, interval_s=0.2)
    tracker.start()
    journal = Journal(run)
    wait_for(lambda: len(runs_of(server.uri, experiment)) == 1)
    run_id = runs_of(server.uri, experiment)[0].info.run_id
    journal.append({"train/loss": 2.0}, step=1)
    wait_for(lambda: points(server.uri, run_id, "train/loss") == [(1, 2.0)])
    journal.append({"train/loss": 1.0}, step=2)
    finish(run)
    report = tracker.close(60)

    assert report.pending is None
    assert report.sent_points == 2
    assert points(server.uri, run_id, "train/loss") == [(1, 2.0), (2, 1.0)]


def test_a_server_killed_midway_and_restarted_gets_every_point_once(
    tmp_path: Path, run: Folder
) -> None:
    with MlflowServer(tmp_path / "server") as server:
        experiment = request(run, server.uri)
        journal = Journal(run)
        tracker = Tracker(run, interval_s=0.1)
        tracker.start()
        for step in range(1, 6):
            journal.append({"train/loss": 1 / step, "val/top1": math.nan}, step=step)
        wait_for(lambda: len(runs_of(server.uri, experiment)) == 1)
        run_id = runs_of(server.uri, experiment)[0].info.run_id
        wait_for(lambda: points(server.uri, run_id, "train/loss"))
        for step in range(6, 11):
            journal.append({"train/loss": 1 / step, "val/top1": math.nan}, step=step)
            if step == 8:
                server.kill()
        server.start()
        for step in range(11, 14):
            journal.append({"train/loss": 1 / step, "val/top1": math.nan}, step=step)
        finish(run)
        report = tracker.close(60)

        assert report.pending is None
        [stored] = runs_of(server.uri, experiment)
        assert stored.info.status == "FINISHED"
        losses = points(server.uri, run_id, "train/loss")
        assert losses == [(step, 1 / step) for step in range(1, 14)]
        assert len(points(server.uri, run_id, "val/top1")) == 13


def test_a_server_that_is_dead_from_the_start_costs_seconds_and_gets_everything_later(
    tmp_path: Path, run: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    server = MlflowServer(tmp_path / "server")  # not started
    experiment = request(run, server.uri)
    tracker = Tracker(run, interval_s=0.2)
    tracker.start()
    wait_for(lambda: "training goes on" in caplog.text)
    for step in range(1, 4):
        started = time.monotonic()
        Journal(run).append({"train/loss": 1 / step}, step=step)
        assert time.monotonic() - started < 1
    finish(run, **{"test/top1": 70.0})
    started = time.monotonic()
    report = tracker.close(60)
    assert time.monotonic() - started < 15
    assert caplog.text.count("training goes on") == 1
    assert report.run_id is None
    assert report.pending is not None
    assert report.pending.startswith("there is no MLflow server at http://127.0.0.1")

    with server:
        report = sync_run(run)
        assert report.pending is None
        [stored] = runs_of(server.uri, experiment)
        assert stored.info.status == "FINISHED"
        assert report.run_id is not None
        losses = points(server.uri, report.run_id, "train/loss")
        assert losses == [(step, 1 / step) for step in range(1, 4)]
        assert points(server.uri, report.run_id, "test/top1") == [(3, 70.0)]


def test_a_server_that_accepts_and_never_answers_holds_nobody_up(run: Folder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        request(run, f"http://127.0.0.1:{port}")
        started = time.monotonic()
        report = sync_run(run)
        assert time.monotonic() - started < 8
        assert report.pending == f"the MLflow server at http://127.0.0.1:{port} does not answer"

        tracker = Tracker(run)
        tracker.start()
        started = time.monotonic()
        report = tracker.close(1.0)
        assert time.monotonic() - started < 1.5
        assert report.pending is not None


def test_a_server_that_hangs_after_its_first_sign_of_life_holds_nobody_up(run: Folder) -> None:
    with healthy_but_hanging_server() as uri:
        request(run, uri)
        tracker = Tracker(run)
        tracker.start()
        time.sleep(1.0)
        started = time.monotonic()
        report = tracker.close(1.0)
        assert time.monotonic() - started < 1.5
        assert report.pending is not None
    for thread in threading.enumerate():  # its environment must not reach the next test
        if thread.name.startswith("mlflow "):
            thread.join(60)


@contextmanager
def healthy_but_hanging_server() -> Iterator[str]:
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/health":
                released.wait(60)
                return
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    hanging = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hanging.daemon_threads = True
    thread = threading.Thread(target=hanging.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{hanging.server_port}"
    finally:
        released.set()
        hanging.shutdown()
        hanging.server_close()
        thread.join()


def test_a_password_in_the_uri_is_not_shown(run: Folder) -> None:
    request(run, f"http://me:secret@127.0.0.1:{free_port()}")

    pending = sync_run(run).pending

    assert pending is not None
    assert "127.0.0.1" in pending
    assert "secret" not in pending


def test_an_interrupted_process_leaves_a_run_that_another_process_finishes(
    server: MlflowServer, run: Folder
) -> None:
    experiment = request(run, server.uri)
    training = textwrap.dedent(
        """
        import sys, time
        from orchestrator.journal import Journal
        from orchestrator.storage import Folder
        from orchestrator.tracking import Tracker
        run = Folder(sys.argv[1])
        tracker = Tracker(run, interval_s=0.1)
        tracker.start()
        for step in range(1, 10000):
            Journal(run).append({"train/loss": 1 / step}, step=step)
            time.sleep(0.02)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", training, run.location])
    wait_for(lambda: len(runs_of(server.uri, experiment)) == 1)
    wait_for(lambda: runs_of(server.uri, experiment)[0].data.metrics)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(run, "KILLED")

    report = sync_run(run)

    assert report.pending is None
    [stored] = runs_of(server.uri, experiment)
    assert stored.info.status == "KILLED"
    written = [
        json.loads(path.read_text())["step"]
        for path in sorted(Path(run.location, "journal").glob("*.json"))
    ]
    assert report.run_id is not None
    assert [step for step, _ in points(server.uri, report.run_id, "train/loss")] == written

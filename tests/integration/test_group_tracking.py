"""Many runs under one parent, against a real MLflow server and a real database."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Any

import digits
import psutil
import pytest
import torch
from mlflow import MlflowClient
from mlflow_server import MlflowServer
from service import free_port

from dcd_core import build_model
from orchestrator.errors import UserError
from orchestrator.group_tracking import GroupTracker, sync_group
from orchestrator.journal import Journal
from orchestrator.storage import Folder
from orchestrator.student_model import save_package
from orchestrator.tracker_process import TrackerProcess
from orchestrator.tracking import (
    default_tracking_uri,
    finish_request,
    has_pending,
    pending_runs,
    register_later,
    reopen,
    request_tracking,
    retarget,
    sync_run,
)

pytestmark = pytest.mark.mlflow

METRICS = ("train/loss", "train/ce", "train/kd", "train/contrast", "val/top1", "val/top5")


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "runs"))


@pytest.fixture
def database(tmp_path: Path) -> str:
    return default_tracking_uri(tmp_path / "db")


def start_group(storage: Folder, uri: str, name: str = "search") -> Folder:
    """A requested group in an MLflow experiment of its own."""
    group = storage / name
    group.write_json("group.json", {"kind": "search"})
    request_tracking(
        group,
        uri=uri,
        experiment=f"{name} {uuid.uuid4().hex[:8]}",
        run_name=name,
        tags={"dcd.role": "search"},
        params={"trials": 2},
        texts={"space.yaml": "title: x\n"},
        artifact_root=artifact_root(storage, uri),
    )
    return group


def artifact_root(storage: Folder, uri: str) -> str | None:
    return f"{storage.location}/../artifacts" if uri.startswith("sqlite") else None


def start_trial(group: Folder, name: str, part: str = "trials") -> Folder:
    trial = group / part / name
    request = group.read_json("tracking/request.json")
    request_tracking(
        trial,
        uri=request["uri"],
        experiment=request["experiment"],
        run_name=name,
        tags={"dcd.role": "trial"},
        params={f"objective.setting_{i}": i for i in range(5)},
        texts={"spec.yaml": f"name: {name}\n"},
        artifact_root=request["artifact_root"],
        parent=group,
    )
    return trial


def run_epochs(trial: Folder, epochs: int = 3) -> None:
    journal = Journal(trial)
    for epoch in range(1, epochs + 1):
        journal.append_history([(epoch, {name: 1 / epoch for name in METRICS})])


def finish(run: Folder, status: Any = "FINISHED", **options: Any) -> None:
    arguments: dict[str, Any] = {"metrics": {}, "tags": {"end": "reached"}, "student": False}
    finish_request(run, status=status, **(arguments | options))


def whole_trial(group: Folder, name: str) -> Folder:
    trial = start_trial(group, name)
    run_epochs(trial)
    finish(trial)
    return trial


def tracked(group: Folder, uri: str | None = None) -> dict[str, Any]:
    """MLflow's runs of a group's experiment, by name; a name that is there twice fails."""
    request = group.read_json("tracking/request.json")
    client = MlflowClient(uri or request["uri"])
    experiment = client.get_experiment_by_name(request["experiment"])
    if experiment is None:
        return {}
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    names = [run.info.run_name for run in runs]
    assert len(set(names)) == len(names)
    return {run.info.run_name: run for run in runs}


def parents(runs: dict[str, Any]) -> dict[str, str | None]:
    """Names of the parents, by the names of their children."""
    names = {run.info.run_id: name for name, run in runs.items()}
    tags = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    return {name: names[parent] for name, parent in tags.items() if parent is not None}


def history(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    found = MlflowClient(uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in found)


def wait_for(condition: Any, *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_trials_are_shown_under_their_group_with_all_that_was_written_down(
    server: MlflowServer, storage: Folder
) -> None:
    group = start_group(storage, server.uri)
    whole_trial(group, "0001")
    start_trial(group, "0002-seed-1", part="finals")
    finish(group, metrics={"best/val/top1": 90.0})

    report = sync_group(group)

    assert report == (3 * len(METRICS) + 1, {})
    runs = tracked(group)
    assert parents(runs) == {"0001": "search", "0002-seed-1": "search"}
    assert {name: run.info.status for name, run in runs.items()} == {
        "search": "FINISHED",
        "0001": "FINISHED",
        "0002-seed-1": "RUNNING",
    }
    trial = runs["0001"]
    assert trial.data.params == {f"objective.setting_{i}": str(i) for i in range(5)}
    assert trial.data.tags["dcd.role"] == "trial"
    assert trial.data.tags["end"] == "reached"
    for metric in METRICS:
        assert history(server.uri, trial, metric) == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    files = MlflowClient(server.uri).list_artifacts(trial.info.run_id)
    assert [file.path for file in files] == ["spec.yaml"]
    assert sync_group(group) == (0, {})


def test_a_tracker_sends_what_is_marked_while_trials_go_on(
    server: MlflowServer, storage: Folder
) -> None:
    group = start_group(storage, server.uri)
    tracker = GroupTracker(group, interval_s=0.1)
    tracker.start()
    trial = start_trial(group, "0001")
    journal = Journal(trial)
    tracker.changed(trial, journal)
    wait_for(lambda: parents(tracked(group)) == {"0001": "search"})
    journal.append({"val/top1": 10.0}, step=1)
    tracker.changed(trial, journal)
    wait_for(lambda: history(server.uri, tracked(group)["0001"], "val/top1") == [(1, 10.0)])
    Journal(group).append({"best/val/top1": 10.0}, step=1)
    tracker.changed(group)
    wait_for(lambda: tracked(group)["search"].data.metrics == {"best/val/top1": 10.0})
    finish(trial)
    tracker.changed(trial, journal)

    assert tracker.close(60) == (2, {})
    assert tracked(group)["0001"].info.status == "FINISHED"


def test_fifty_trials_take_seconds_and_leave_nothing_in_memory(
    server: MlflowServer, storage: Folder
) -> None:
    group = start_group(storage, server.uri)
    tracker = GroupTracker(group, interval_s=0.1)
    tracker.start()
    journals: list[weakref.ref[Journal]] = []
    for number in range(50):
        trial = whole_trial(group, f"{number:04d}")
        journal = Journal(trial)
        journals.append(weakref.ref(journal))
        tracker.changed(trial, journal)
    del journal
    wait_for(lambda: not [kept for kept in journals if kept() is not None], timeout_s=20)

    assert tracker.close(60) == (50 * 3 * len(METRICS), {})
    runs = tracked(group)
    assert len(runs) == 51
    assert set(parents(runs).values()) == {"search"}


def test_a_journal_that_is_written_while_it_is_sent_arrives_whole(
    database: str, storage: Folder
) -> None:
    group = start_group(storage, database)
    tracker = GroupTracker(group, interval_s=0.001)
    tracker.start()
    trial = start_trial(group, "0001")
    journal = Journal(trial)
    for step in range(1, 301):
        journal.append_history([(step, {"train/loss": 1 / step})])
        tracker.changed(trial, journal)

    assert tracker.close(60) == (300, {})
    losses = history(database, tracked(group)["0001"], "train/loss")
    assert losses == [(step, 1 / step) for step in range(1, 301)]


def test_a_search_that_starts_while_the_server_is_down_is_nested_when_it_comes(
    tmp_path: Path, storage: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    server = MlflowServer(tmp_path / "server")  # not started
    group = start_group(storage, server.uri)
    tracker = GroupTracker(group, interval_s=0.1)
    tracker.start()
    for name in ("0001", "0002"):
        trial = start_trial(group, name)
        started = time.monotonic()
        tracker.changed(trial)
        assert time.monotonic() - started < 0.5
    wait_for(lambda: "the runs go on" in caplog.text)
    with server:
        wait_for(lambda: parents(tracked(group)) == {"0001": "search", "0002": "search"})
        for name in ("0001", "0002"):
            run_epochs(group / "trials" / name)
            tracker.changed(group / "trials" / name)
        assert tracker.close(60) == (2 * 3 * len(METRICS), {})
    assert caplog.text.count("the runs go on") == 1


def test_a_server_that_is_killed_midway_gets_every_point_once(
    tmp_path: Path, storage: Folder
) -> None:
    with MlflowServer(tmp_path / "server") as server:
        group = start_group(storage, server.uri)
        tracker = GroupTracker(group, interval_s=0.05)
        tracker.start()
        for number in range(12):
            if number == 4:
                wait_for(lambda: tracked(group))
                server.kill()
            if number == 8:
                server.start()
            tracker.changed(whole_trial(group, f"{number:04d}"))
        finish(group)
        tracker.changed(group)

        report = tracker.close(60)

        assert report.pending == {}
        runs = tracked(group)
        assert len(runs) == 13
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        for number in range(12):
            losses = history(server.uri, runs[f"{number:04d}"], "train/loss")
            assert losses == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]


def test_a_server_that_stays_away_costs_seconds_and_all_runs_are_told_to_be_pending(
    tmp_path: Path, storage: Folder
) -> None:
    server = MlflowServer(tmp_path / "server")  # not started
    group = start_group(storage, server.uri)
    tracker = GroupTracker(group)
    tracker.start()
    trials = [whole_trial(group, f"{number:04d}") for number in range(20)]
    for trial in trials:
        tracker.changed(trial)
    started = time.monotonic()
    report = tracker.close(60)

    assert time.monotonic() - started < 10
    assert set(report.pending) == {group.location, *(trial.location for trial in trials)}
    for reason in report.pending.values():
        assert reason.startswith("there is no MLflow server at http://127.0.0.1")
    with server:
        assert sync_group(group) == (20 * 3 * len(METRICS), {})
        assert len(parents(tracked(group))) == 20


def test_a_tracker_sends_what_an_earlier_session_left(
    server: MlflowServer, storage: Folder
) -> None:
    group = start_group(storage, server.uri)
    left = whole_trial(group, "0001")
    tracker = GroupTracker(group)
    tracker.start()

    assert tracker.close(60) == (3 * len(METRICS), {})
    assert not has_pending(left)


def test_a_run_with_trouble_of_its_own_does_not_hold_up_the_others(
    server: MlflowServer, storage: Folder
) -> None:
    group = start_group(storage, server.uri)
    trials = [start_trial(group, f"{number:04d}") for number in range(6)]
    assert sync_group(group) == (0, {})
    client = MlflowClient(server.uri)
    for name in ("0000", "0001", "0002"):
        client.delete_run(tracked(group)[name].info.run_id)
    tracker = GroupTracker(group, interval_s=0.1)
    tracker.start()
    for trial in trials:
        run_epochs(trial)
        tracker.changed(trial)

    sent, pending = tracker.close(60)

    assert sent == 3 * 3 * len(METRICS)
    assert set(pending) == {trial.location for trial in trials[:3]}
    assert all("was deleted: restore it first" in reason for reason in pending.values())


def test_a_trial_brings_its_group_along(database: str, storage: Folder) -> None:
    group = start_group(storage, database)
    trial = start_trial(group, "0001")

    assert sync_run(trial).pending is None

    assert parents(tracked(group)) == {"0001": "search"}


def test_a_trial_whose_group_cannot_be_sent_is_not_sent_either(
    database: str, storage: Folder
) -> None:
    group = start_group(storage, database)
    trial = start_trial(group, "0001")
    client = MlflowClient(database)
    experiment = group.read_json("tracking/request.json")["experiment"]
    client.delete_experiment(client.create_experiment(experiment))

    assert "was deleted: restore it first" in str(sync_run(trial).pending)
    left = sync_group(group).pending
    assert set(left) == {group.location, trial.location}


def test_a_group_moves_whole_to_another_place(
    server: MlflowServer, database: str, storage: Folder
) -> None:
    group = start_group(storage, database)
    trial = whole_trial(group, "0001")
    assert sync_group(group).pending == {}
    retarget(group, uri=server.uri, artifact_root=None)
    assert pending_runs(storage) == ["search", "search/trials/0001"]

    assert sync_group(group) == (3 * len(METRICS), {})

    runs = tracked(group, server.uri)
    assert parents(runs) == {"0001": "search"}
    assert history(server.uri, runs["0001"], "train/loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    later = start_trial(group, "0002")
    assert sync_run(later).pending is None
    assert len(parents(tracked(group, server.uri))) == 2
    with pytest.raises(UserError, match=r"where its group is: .*`dcd sync search --uri URI`"):
        retarget(trial, uri=database, artifact_root=None)


def test_a_storage_that_was_copied_elsewhere_is_sent_from_there(
    database: str, storage: Folder, tmp_path: Path
) -> None:
    group = start_group(storage, database)
    whole_trial(group, "0001")
    shutil.move(storage.location, tmp_path / "moved")
    moved = Folder(str(tmp_path / "moved")) / "search"

    assert sync_group(moved) == (3 * len(METRICS), {})

    assert parents(tracked(moved)) == {"0001": "search"}


def test_a_search_that_is_extended_sends_its_new_end(database: str, storage: Folder) -> None:
    group = start_group(storage, database)
    group.write("report.md", "16 trials")
    Journal(group).append({"best/val/top1": 80.0}, step=16)
    finish(group, artifacts=["report.md"], tags={"dcd.winner": "0003"})
    assert sync_group(group).pending == {}
    reopen(group)
    assert sync_group(group).pending == {}
    assert tracked(group)["search"].info.status == "RUNNING"

    group.write("report.md", "32 trials")
    Journal(group).append({"best/val/top1": 90.0}, step=32)
    finish(group, artifacts=["report.md"], tags={"dcd.winner": "0020"})
    assert sync_group(group).pending == {}

    run = tracked(group)["search"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["dcd.winner"] == "0020"
    assert Path(run.info.artifact_uri, "report.md").read_text() == "32 trials"
    assert history(database, run, "best/val/top1") == [(16, 80.0), (32, 90.0)]


def test_a_student_that_is_in_mlflow_already_is_registered_later_and_not_logged_again(
    database: str, storage: Folder
) -> None:
    group = start_group(storage, database)
    final = start_trial(group, "0001-seed-1", part="finals")
    torch.manual_seed(0)
    network = build_model("resnet8", num_classes=4, in_channels=3)
    save_package(
        final / "student",
        state_dict=network.state_dict(),
        network={"source": "resnet8", "args": {}, "num_classes": 4, "in_channels": 3},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        image_shape=(3, 8, 8),
        class_names=["cat", "dog", "frog", "ship"],
        metrics={"val/top1": 60.0},
        lineage={"data.fingerprint": "f00d", "data.split_seed": "0"},
    )
    finish(final, student=True)
    assert sync_group(group).pending == {}
    assert pending_runs(storage) == []
    register_later(final, "winner")
    assert pending_runs(storage) == ["search/finals/0001-seed-1"]

    assert sync_group(group).pending == {}

    assert pending_runs(storage) == []
    client = MlflowClient(database)
    champion = client.get_model_version_by_alias("winner", "champion")
    run = tracked(group)["0001-seed-1"]
    assert champion.run_id == run.info.run_id
    models = client.search_logged_models([run.info.experiment_id])
    assert len(models) == 1
    register_later(final, "other")
    assert sync_group(group).pending == {}
    assert [str(v.version) for v in client.search_model_versions("name = 'other'")] == ["1"]
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


def test_closing_does_not_wait_for_a_server_that_hangs(storage: Folder) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        group = start_group(storage, f"http://127.0.0.1:{silent.getsockname()[1]}")
        trial = whole_trial(group, "0001")
        tracker = GroupTracker(group)
        tracker.start()
        tracker.changed(trial)
        started = time.monotonic()
        report = tracker.close(0.7)
        assert time.monotonic() - started < 1.2
        assert set(report.pending) == {group.location, trial.location}
    for thread in threading.enumerate():  # it must not reach the next test
        if thread.name.startswith("mlflow "):
            thread.join(60)


KILLED_AT_EVERY_ACTION = """
import os, sys
from mlflow import MlflowClient
from orchestrator.group_tracking import sync_group
from orchestrator.storage import Folder

actions, limit = 0, 0

def deadly(real):
    def wrapper(*args, **kwargs):
        global actions
        actions += 1
        if actions == limit:
            os._exit(9)
        return real(*args, **kwargs)
    return wrapper

Folder.write_json = deadly(Folder.write_json)
for name in ("create_run", "log_batch", "set_terminated", "search_runs"):
    setattr(MlflowClient, name, deadly(getattr(MlflowClient, name)))

for limit, group in enumerate(sys.argv[1:], start=1):
    child = os.fork()
    if child == 0:
        os._exit(1 if sync_group(Folder(group)).pending else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, flush=True)
    if code != 9:
        break
"""


@pytest.mark.slow
def test_a_kill_between_any_two_actions_neither_doubles_nor_loses_anything(
    database: str, storage: Folder
) -> None:
    # For each group: one parent and two children, of which each takes some six actions.
    groups = [start_group(storage, database, f"group-{number:02d}") for number in range(40)]
    for group in groups:
        whole_trial(group, "0001")
        run_epochs(start_trial(group, "0002"))
    MlflowClient(database).search_experiments()  # makes the database
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_AT_EVERY_ACTION)]
        + [group.location for group in groups],
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
    )
    codes = [int(line) for line in done.stdout.split()]
    assert set(codes[:-1]) == {9}
    assert codes[-1] == 0  # the kill would have come after the end
    assert len(codes) > 10

    for group in groups[: len(codes)]:
        reopen(group / "trials" / "0001")
        assert sync_group(group).pending == {}
        runs = tracked(group)
        assert parents(runs) == {"0001": group.location[-8:], "0002": group.location[-8:]}
        assert {run.info.status for run in runs.values()} == {"RUNNING"}
        finish(group / "trials" / "0001")
        assert sync_group(group).pending == {}
        runs = tracked(group)
        assert runs["0001"].info.status == "FINISHED"
        for name in ("0001", "0002"):
            assert len(runs[name].data.params) == 5
            assert runs[name].data.tags["dcd.role"] == "trial"
            assert Path(runs[name].info.artifact_uri, "spec.yaml").exists()
            losses = history(database, runs[name], "train/loss")
            assert losses == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]


def dcd(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=folder,
        env=digits.environment(PYTHONPATH=str(digits.REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_sync_as_typed(server: MlflowServer, database: str, tmp_path: Path) -> None:
    storage = Folder(str(tmp_path / "dcd_runs"))
    down = f"http://127.0.0.1:{free_port()}"
    group = start_group(storage, down)
    trials = [whole_trial(group, name) for name in ("0001", "0002")]
    single = storage / "single"
    request_tracking(
        single,
        uri=database,
        experiment="single",
        run_name="single",
        tags={},
        params={},
        texts={},
        artifact_root=str(tmp_path / "artifacts"),
    )
    assert pending_runs(storage) == ["search", "search/trials/0001", "search/trials/0002", "single"]

    code, out, _ = dcd(tmp_path, "sync")
    assert code == 1
    assert out.splitlines() == [
        f"search: 3 runs, 0 points, 3 not sent yet: there is no MLflow server at {down}",
        "single: 0 points, all sent",
    ]

    code, out, err = dcd(tmp_path, "sync", "search/trials/0001", "--uri", server.uri)
    assert (code, out) == (2, "")
    assert err == (
        f"error: {trials[0].location} is tracked where its group is: move the whole group with "
        "`dcd sync search --uri URI`\n"
    )

    retarget(group, uri=server.uri, artifact_root=None)
    points = 3 * len(METRICS)
    code, out, _ = dcd(tmp_path, "sync", "search/trials/0001")
    assert (code, out) == (0, f"search/trials/0001: {points} points, all sent\n")
    assert parents(tracked(group)) == {"0001": "search"}

    code, out, _ = dcd(tmp_path, "sync", "search")
    assert (code, out) == (0, f"search: 3 runs, {points} points, all sent\n")
    assert parents(tracked(group)) == {"0001": "search", "0002": "search"}

    code, out, _ = dcd(tmp_path, "sync", "search", "--uri", database)
    assert (code, out) == (0, f"search: 3 runs, {2 * points} points, all sent\n")
    assert parents(tracked(group, database)) == {"0001": "search", "0002": "search"}
    assert dcd(tmp_path, "sync")[:2] == (
        0,
        f"nothing to send: all runs in {storage.location} are in MLflow\n",
    )


def test_a_process_of_its_own_sends_what_is_marked_and_is_gone_afterwards(
    server: MlflowServer, storage: Folder
) -> None:
    group = start_group(storage, server.uri)
    tracker = TrackerProcess(group, interval_s=0.1)
    before = {child.pid for child in psutil.Process().children()}
    tracker.start()
    (process,) = (c for c in psutil.Process().children() if c.pid not in before)
    trial = start_trial(group, "0001")
    tracker.changed(trial)
    wait_for(lambda: parents(tracked(group)) == {"0001": "search"})
    for step in range(1, 21):
        Journal(trial).append({"val/top1": float(step)}, step=step)
        tracker.changed(trial)
    wait_for(lambda: len(history(server.uri, tracked(group)["0001"], "val/top1")) == 20)
    finish(trial, metrics={"test/top1": 9.0})
    tracker.changed(trial)

    assert tracker.close(60) == (21, {})
    assert tracked(group)["0001"].info.status == "FINISHED"
    assert not process.is_running()


def test_a_tracker_process_that_dies_is_told_and_its_runs_are_sent_later(
    server: MlflowServer, storage: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    group = start_group(storage, server.uri)
    tracker = TrackerProcess(group, interval_s=0.1)
    before = {child.pid for child in psutil.Process().children()}
    tracker.start()
    (process,) = (c for c in psutil.Process().children() if c.pid not in before)
    wait_for(lambda: tracked(group))
    process.kill()
    wait_for(lambda: "the runs go on, and `dcd sync` sends it" in caplog.text)
    trial = whole_trial(group, "0001")
    tracker.changed(trial)
    started = time.monotonic()
    report = tracker.close(60)

    assert time.monotonic() - started < 10
    assert report == (0, {group.location: "the process that sends to MLflow ended with -9"})
    assert sync_group(group).pending == {}
    assert parents(tracked(group)) == {"0001": "search"}


def test_what_a_tracker_process_has_no_time_for_is_pending(
    server: MlflowServer, storage: Folder
) -> None:
    group = start_group(storage, server.uri)
    tracker = TrackerProcess(group)
    tracker.start()
    report = tracker.close(0.1)  # it is still importing MLflow
    assert report.pending == {group.location: "the tracking server was too slow"}
    assert sync_group(group).pending == {}


def test_the_warnings_of_a_tracker_process_are_the_drivers(
    tmp_path: Path, storage: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    server = MlflowServer(tmp_path / "server")  # not started
    group = start_group(storage, server.uri)
    tracker = TrackerProcess(group, interval_s=0.1)
    tracker.start()
    wait_for(lambda: "there is no MLflow server at" in caplog.text)
    report = tracker.close(10)
    assert report.pending[group.location].startswith("there is no MLflow server at")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_tracker_process_ends_with_its_driver(
    server: MlflowServer, storage: Folder, number: signal.Signals
) -> None:
    group = start_group(storage, server.uri)
    code = textwrap.dedent(
        """
        import signal, sys, time
        # What is started in the background of a shell may have it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from orchestrator.storage import Folder
        from orchestrator.tracker_process import TrackerProcess
        TrackerProcess(Folder(sys.argv[1])).start()
        time.sleep(600)
        """
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, group.location],
        env=digits.environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: tracked(group))
    below = digits.descendants(driver.pid)
    assert below
    os.killpg(driver.pid, number) if number == signal.SIGINT else driver.kill()
    driver.wait()
    digits.wait_until_gone(below)

"""`dcd search` as a user types it: found, killed, resumed, extended, failed, interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import digits
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.journal import RESTARTS

pytestmark = [
    pytest.mark.ray,
    pytest.mark.mlflow,
    pytest.mark.slow,
]

SPACE: dict[str, Any] = {
    "title": "two weights",
    "description": "For tests.",
    "scheduler": "none",
    "trials": 4,
    "parameters": {
        "objective.kd_weight": {"loguniform": [0.1, 10.0]},
        "objective.dcd_weight": {"loguniform": [0.1, 10.0]},
    },
    "first": {"objective.kd_weight": 1.0, "objective.dcd_weight": 1.0},
}


STUDENTS = """
import gc
import json
import os
from pathlib import Path

import torch

from dcd_core import build_model
from orchestrator.data.dataset import ImageSet

HERE = Path(__file__).parent


def network(num_classes, in_channels=3, kind="good", width=8):
    model = build_model(f"resnet{width}", num_classes=num_classes)
    if _in_trial():
        if kind != "good" and os.environ.get("MENDED") is None:
            _append(f"attempts-{kind}.txt", "x")
            if kind == "dies":
                os._exit(7)
            raise RuntimeError(f"the student is {kind}")
        model.register_forward_pre_hook(_count_step)
        _append("images.txt", json.dumps(_images()) + "\\n")
    return model


def _count_step(model, inputs):
    if model.training and torch.is_grad_enabled():
        _append("steps.txt", "x")


def _images():
    # Which file each split's pixels are mapped from, where in it, and whether they can be written.
    found = []
    for split in (thing for thing in gc.get_objects() if type(thing) is ImageSet):
        address = split.images.ctypes.data
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, _, offset, _, inode, *path = line.split()
            first, last = (int(end, 16) for end in span.split("-"))
            if first <= address < last:
                place = address - first + int(offset, 16)
                found.append([" ".join(path), inode, place, bool(split.images.flags.writeable)])
    return sorted(found)


def _append(name, text):
    with open(HERE / name, "a") as file:
        file.write(text)


def _in_trial():
    # Not in the driver, nor where the search scores the teacher.
    title = Path("/proc/self/cmdline").read_text()
    return "ray::" in title and "_measure" not in title
"""
STEPS = 6  # of an epoch: 103 images by 20


def prepare(
    folder: Path,
    teacher: Path,
    space: dict[str, Any] | None = None,
    updates: dict[str, Any] | None = None,
) -> None:
    tracked = {"tracking.enabled": True, "train.epochs": 4}
    digits.write(folder / "run.yaml", digits.experiment(teacher, tracked | (updates or {})))
    (folder / "own.yaml").write_text(yaml.safe_dump(space or SPACE, sort_keys=False))
    (folder / "own_students.py").write_text(STUDENTS)


def state(folder: Path) -> str:
    path = folder / "state.json"
    return str(json.loads(path.read_text())["state"]) if path.exists() else "absent"


def trials(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((folder / "trials").glob("*"))}


def ended(folder: Path) -> list[str]:
    return [n for n, path in trials(folder).items() if state(path) in ("finished", "stopped")]


def going(folder: Path, *, epochs: int) -> list[str]:
    return [
        name
        for name, path in trials(folder).items()
        if state(path) == "running" and max(digits.epochs(path), default=0) >= epochs
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.json")}


def mlflow_runs(workplace: Path) -> tuple[MlflowClient, list[Run]]:
    client = MlflowClient(tracking_uri=f"sqlite:///{workplace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dcd")
    assert experiment is not None
    return client, client.search_runs([experiment.experiment_id])


def role(runs: list[Run], wanted: str) -> dict[str, Run]:
    found = [run for run in runs if run.data.tags["dcd.role"] == wanted]
    named = {str(run.info.run_name): run for run in found}
    assert len(named) == len(found), "a run is in MLflow twice"
    return named


def title(process: psutil.Process) -> str:
    with suppress(psutil.Error):  # it has ended
        return "".join(process.cmdline())
    return ""


def kill_driver(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """SIGKILL, and wait until what trained has ended; all the processes there were below."""
    below = digits.descendants(process.pid)
    # Ray's two agents try to report the death of their head for a minute before they go too.
    training = [child for child in below if "Agent" not in title(child)]
    digits.kill(process.pid)
    process.wait()
    digits.wait_until_gone(training)
    return below


def test_a_killed_search_is_resumed_and_a_finished_one_extended(
    workplace: Path, teacher: Path
) -> None:
    updates = {"train.epochs": 40, "student.source": "own_students:network"}
    prepare(workplace, teacher, updates=updates)
    folder = workplace / "dcd_runs" / "run-own"
    process = digits.start(workplace, "search", "own.yaml", "run.yaml")
    digits.wait_until(
        lambda: len(ended(folder)) >= 1 and going(folder, epochs=5),
        what="ended trial beside a running one",
    )
    below = kill_driver(process)
    finished = {name: content(trials(folder)[name] / "journal") for name in ended(folder)}
    cut_off = going(folder, epochs=5)[0]
    reached = content(trials(folder)[cut_off] / "journal")
    assert (folder / "trials" / cut_off / "checkpoints").exists()

    output = digits.run(
        workplace, "search", "--resume", "run-own", "--final-seeds", "2", "--register", "students"
    )
    assert list(trials(folder)) == ["0001", "0002", "0003", "0004"]
    assert f"trials that have ended: {len(finished)};" in output
    for name, before in finished.items():  # not touched
        assert content(folder / "trials" / name / "journal") == before
    after = content(folder / "trials" / cut_off / "journal")
    assert {name: after[name] for name in reached} == reached  # nor was what it had reached
    assert sorted(digits.epochs(folder / "trials" / cut_off)) == list(range(41))
    # Four trials and two final runs, and of the (at most two) that were cut off one epoch again.
    steps = len((workplace / "steps.txt").read_text()) - 6 * 40 * STEPS
    assert 0 <= steps <= 2 * STEPS
    for path in trials(folder).values():
        assert state(path) == "finished"
        assert not (path / "checkpoints").exists()
        assert not any(
            key.startswith("test/") for key in json.loads((path / "result.json").read_text())
        )
    assert not (folder / "tune").exists()
    settings = json.loads((folder / "trials" / "0001" / "trial.json").read_text())["settings"]
    assert settings == SPACE["first"]

    client, runs = mlflow_runs(workplace)
    (parent,) = role(runs, "search").values()
    children, finals = role(runs, "trial"), role(runs, "final")
    assert sorted(children) == [f"run-own-000{number}" for number in range(1, 5)]
    assert len(finals) == 2
    for child in [*children.values(), *finals.values()]:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert "spec.yaml" in [item.path for item in client.list_artifacts(child.info.run_id)]
    for name, child in children.items():
        assert set(child.data.params) == set(SPACE["parameters"])
        assert not any(key.startswith("test/") for key in child.data.metrics), name
        history = client.get_metric_history(child.info.run_id, "val/top1")
        assert sorted(point.step for point in history) == list(range(1, 41))
    assert all("test/top1" in final.data.metrics for final in finals.values())
    best = client.get_metric_history(parent.info.run_id, "search/best")
    values = [point.value for point in sorted(best, key=lambda p: p.step)]
    assert values == sorted(values) and parent.data.metrics["search/winner"] == values[-1]
    first = json.loads((folder / "trials" / "0001" / "result.json").read_text())["val/top1"]
    assert values[-1] >= first
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report.md", "space.yaml", "spec.yaml", "figures"} <= artifacts
    assert "Final runs" in (folder / "report.md").read_text()
    (version,) = client.search_model_versions("name = 'students'")
    champion = client.get_model_version_by_alias("students", "champion")
    assert champion.version == version.version
    registered = client.get_run(version.run_id)
    ranked = sorted(f.data.metrics["val/top1_best"] for f in finals.values())
    assert registered.data.metrics["val/top1_best"] == ranked[0]  # of two the lower

    # Extended: two more under the same parent, the others untouched.
    before = {name: content(path) for name, path in trials(folder).items()}
    digits.run(workplace, "search", "own.yaml", "run.yaml", "--trials", "6", "--final-seeds", "2")
    assert list(trials(folder)) == [f"000{number}" for number in range(1, 7)]
    for name, files in before.items():
        now = content(folder / "trials" / name)
        assert {key: now[key] for key in files if "tracking" not in key} == {
            key: value for key, value in files.items() if "tracking" not in key
        }
    _, runs = mlflow_runs(workplace)
    (same,) = role(runs, "search").values()
    assert same.info.run_id == parent.info.run_id and same.info.status == "FINISHED"
    assert len(role(runs, "trial")) == 6
    assert all(r.data.tags.get("mlflow.parentRunId") for r in role(runs, "trial").values())

    # Once more, with nothing left to do.
    before = {name: content(path) for name, path in trials(folder).items()}
    told = {run.info.run_id: run.data.to_dictionary() for run in runs}
    report, steps = (folder / "report.md").read_text(), (workplace / "steps.txt").read_text()
    digits.run(workplace, "search", "--resume", "run-own")
    assert {name: content(path) for name, path in trials(folder).items()} == before
    assert (workplace / "steps.txt").read_text() == steps
    assert (folder / "report.md").read_text() == report
    _, runs = mlflow_runs(workplace)
    assert {run.info.run_id: run.data.to_dictionary() for run in runs} == told
    digits.wait_until_gone(below, timeout=120)


def test_trials_share_one_copy_of_the_images_and_bad_ones_are_stopped(
    workplace: Path, teacher: Path
) -> None:
    space = SPACE | {
        "scheduler": "asha",
        "asha": {"grace": 1, "reduction": 2},
        "searcher": "random",
        "metric": "val/loss",  # top-1 of few images has many ties, of which none is stopped
        "trials": 6,
        "parameters": {"optimizer.lr": {"choice": [1e-7, 0.1, 0.12, 0.14, 0.16, 0.18]}},
        "first": {"optimizer.lr": 1e-7},  # in so few steps the others only do harm
    }
    prepare(workplace, teacher, space, {"student.source": "own_students:network"})
    output = digits.run(workplace, "search", "own.yaml", "run.yaml", "--final-seeds", "1")
    folder = workplace / "dcd_runs" / "run-own"
    states = {name: state(path) for name, path in trials(folder).items()}
    assert states["0001"] == "finished" and set(states.values()) == {"finished", "stopped"}
    _, runs = mlflow_runs(workplace)
    children = role(runs, "trial")
    for name, path in trials(folder).items():
        child = children[f"run-own-{name}"]
        assert (child.info.status, child.data.tags["dcd.state"]) == ("FINISHED", states[name])
        assert not (path / "checkpoints").exists()
        assert not [point.name for point in digits.points(path) if "test" in point.name]
        assert not [name for name in child.data.metrics if "test" in name]
        if states[name] == "stopped":
            assert max(digits.epochs(path)) in (1, 2) and not (path / "result.json").exists()
    losses = []  # of the students that were kept
    for name in ended(folder):
        if states[name] == "finished":
            result = json.loads((folder / "trials" / name / "result.json").read_text())
            curve = digits.epochs(folder / "trials" / name)
            losses.append(curve[int(result["best_epoch"])]["val/loss"])
    (parent,) = role(runs, "search").values()
    assert parent.data.metrics["search/winner"] == min(losses)
    assert "scheduler asha" in output
    report = (folder / "report.md").read_text()
    assert "rank correlation" in report
    assert f"In the search the winner had {min(losses):.4g}" in report

    (final,) = (folder / "finals").iterdir()
    assert json.loads((final / "result.json").read_text())["test/top1"] >= 0
    attempts = [json.loads(line) for line in (workplace / "images.txt").read_text().splitlines()]
    assert len(attempts) >= 6
    for images in attempts:  # training, validation and test split, each in the same place for all
        assert images == attempts[0] and len(images) == 3
        for path, _, _, writeable in images:
            assert "plasma" in path and not writeable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_search_and_prints_how_to_go_on(
    workplace: Path, teacher: Path, number: signal.Signals
) -> None:
    prepare(workplace, teacher, updates={"train.epochs": 400})
    folder = workplace / "dcd_runs" / "run-own"
    process = digits.start(workplace, "search", "own.yaml", "run.yaml")
    digits.wait_until(lambda: going(folder, epochs=2), what="running trial")
    below = digits.descendants(process.pid)
    digits.kill(process.pid, number)
    assert process.wait(60) == 128 + number
    output = (workplace / "output.txt").read_text()
    assert "go on with: dcd search --resume run-own" in output
    assert "Traceback" not in output
    digits.wait_until_gone(below, timeout=120)
    assert state(folder) == "interrupted"
    # One may have been written down and not begun.
    assert {state(path) for path in trials(folder).values()} <= {"interrupted", "absent"}
    digits.run(workplace, "sync")  # what there was no time for
    _, runs = mlflow_runs(workplace)
    assert {run.info.status for run in role(runs, "search").values()} == {"KILLED"}
    ran = [run for run in role(runs, "trial").values() if run.data.metrics]
    assert ran and {run.info.status for run in ran} == {"KILLED"}


def test_a_failing_trial_is_tried_twice_and_the_search_goes_on(
    workplace: Path, teacher: Path
) -> None:
    space = SPACE | {
        "searcher": "grid",
        "trials": None,
        "parameters": {"student.args.kind": {"grid": ["good", "broken", "dies"]}},
        "first": {},
    }
    prepare(workplace, teacher, space, {"student.source": "own_students:network"})
    output = digits.run(workplace, "search", "own.yaml", "run.yaml", "--final-seeds", "1")
    folder = workplace / "dcd_runs" / "run-own"
    states = {name: state(path) for name, path in trials(folder).items()}
    assert states == {"0001": "finished", "0002": "failed", "0003": "failed"}
    assert "the student is broken" in output
    assert (workplace / "attempts-broken.txt").read_text() == "xx"
    assert (workplace / "attempts-dies.txt").read_text() == "xx"
    _, runs = mlflow_runs(workplace)
    broken = role(runs, "trial")["run-own-0002"]
    assert broken.info.status == "FAILED"
    assert "the student is broken" in broken.data.tags["error"]
    assert broken.data.metrics[RESTARTS] == 1
    assert "broken" in (folder / "report.md").read_text()


def test_when_all_trials_fail_the_search_stops_early_and_a_resume_tries_again(
    workplace: Path, teacher: Path
) -> None:
    prepare(
        workplace,
        teacher,
        SPACE | {"trials": 8},
        {
            "student.source": "own_students:network",
            "student.args": {"kind": "broken"},
            "scaling.cpus_per_worker": 1,
        },
    )
    process = digits.start(workplace, "search", "own.yaml", "run.yaml", "--final-seeds", "1")
    assert process.wait(240) == 1
    output = (workplace / "output.txt").read_text()
    assert "the student is broken" in output.splitlines()[-1]
    assert "Traceback" not in output
    folder = workplace / "dcd_runs" / "run-own"
    assert 3 <= len(trials(folder)) < 8
    again = ("search", "--resume", "run-own")
    digits.run(workplace, *again, "--trials", "4", "--final-seeds", "0", MENDED="1")
    assert {state(path) for path in trials(folder).values()} == {"finished"}
    # The same for the final runs.
    process = digits.start(workplace, *again, "--final-seeds", "1")
    assert process.wait(240) == 1
    (final,) = (folder / "finals").iterdir()
    assert state(final) == "failed"
    digits.run(workplace, *again, MENDED="1")
    assert state(final) == "finished"


def test_a_population_exploits_also_when_it_was_killed(workplace: Path, teacher: Path) -> None:
    space = {
        "title": "schedules",
        "description": "For tests.",
        "scheduler": "pbt",
        "searcher": "random",
        "pbt": {"population": 4, "interval": 3},
        "parameters": SPACE["parameters"],
        "first": SPACE["first"],
    }
    prepare(workplace, teacher, space, {"train.epochs": 15})
    folder = workplace / "dcd_runs" / "run-own"
    process = digits.start(workplace, "search", "own.yaml", "run.yaml", "--final-seeds", "1")
    digits.wait_until(lambda: list(folder.glob("trials/*/mutations.json")), what="exploit")
    kill_driver(process)
    reached = {name: max(digits.epochs(path), default=0) for name, path in trials(folder).items()}
    assert len(reached) == 4 and max(reached.values()) < 15
    digits.run(workplace, "search", "--resume", "run-own")

    _, runs = mlflow_runs(workplace)
    children = role(runs, "trial")
    assert len(children) == len(trials(folder)) == 4
    found: dict[str, list[dict[str, Any]]] = {}
    for name, path in trials(folder).items():
        assert state(path) == "finished"
        curve = digits.epochs(path)
        assert sorted(curve) == list(range(16))
        if (path / "mutations.json").exists():
            found[name] = json.loads((path / "mutations.json").read_text())
        # The weights that are told are those that the loss was made of, in every epoch.
        for epoch in range(1, 16):
            now = curve[epoch]
            total = now["train/ce"] + now["pbt/kd_weight"] * now["train/kd"]
            total += now["pbt/dcd_weight"] * (
                now["train/contrast"] + 0.5 * now["train/consistency"]
            )
            assert now["train/loss"] == pytest.approx(total, rel=1e-4), (name, epoch)
        # MLflow's parameters are those it began with.
        begun = json.loads((path / "trial.json").read_text())["settings"]
        params = children[f"run-own-{name}"].data.params
        assert {key: float(value) for key, value in params.items()} == begun
    # Of four members the last is replaced each time, in the second session as in the first.
    taken = [m["epoch"] for mutations in found.values() for m in mutations]
    assert sorted(taken) == [3, 6, 9, 12]
    for name, mutations in found.items():
        spec = json.loads((folder / "trials" / name / "spec.json").read_text())
        last = mutations[-1]
        in_force = {c["epoch"]: c for c in spec["objective"]["schedule"]}
        curve = digits.epochs(folder / "trials" / name)
        assert curve[15]["pbt/exploits"] == len(mutations)
        for key, value in last["after"].items():
            for epoch in range(last["epoch"] + 1, 16):
                assert curve[epoch][f"pbt/{key}"] == pytest.approx(value)
            if value != last["donors"][key]:
                assert in_force[last["epoch"] + 1][key] == value
    results = {
        name: json.loads((path / "result.json").read_text())
        for name, path in trials(folder).items()
    }
    (parent,) = role(runs, "search").values()
    best = max(result["val/top1"] for result in results.values())
    assert parent.data.metrics["search/winner"] == best
    table = pq.read_table(folder / "timeline.parquet")
    assert table.column_names == ["trial", "epoch", "setting", "value", "taken_over_from"]
    assert table.num_rows == 4 * 15 * 2
    assert {v for v in table["taken_over_from"].to_pylist() if v} == {
        m["donor"] for mutations in found.values() for m in mutations
    }
    (final,) = (folder / "finals").iterdir()
    objectives = [
        json.loads((path / "spec.json").read_text())["objective"]
        for path in (final, folder / "trials" / final.name.split("-")[0])
    ]
    assert objectives[0] == objectives[1]  # the same weights in the same epochs


def test_two_goals_give_a_pareto_front_with_latencies(workplace: Path, teacher: Path) -> None:
    space = {
        "title": "students",
        "description": "For tests.",
        "scheduler": "none",
        "objectives": [{"metric": "val/top1"}, {"metric": "student/parameters"}],
        "trials": 2,
        "parameters": {"student.source": {"choice": ["resnet8", "resnet14"]}},
    }
    prepare(workplace, teacher, space, {"train.epochs": 2})
    output = digits.run(workplace, "search", "own.yaml", "run.yaml", "--final-seeds", "0")
    folder = workplace / "dcd_runs" / "run-own"
    sources = {
        json.loads((path / "trial.json").read_text())["settings"]["student.source"]
        for path in trials(folder).values()
    }
    assert sources == {"resnet8", "resnet14"}  # a point is not tried twice
    assert "Pareto front" in output and "78,042" in output
    for path in trials(folder).values():
        assert json.loads((path / "latency.json").read_text())["latency_ms"] > 0
    _, runs = mlflow_runs(workplace)
    assert all("student/latency_ms" in r.data.metrics for r in role(runs, "trial").values())

"""The engine on a real Ray with made-up cores and a made-up GPU, and trials that train nothing."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import digits
import pytest
import ray
import ray.tune
from ray.cluster_utils import Cluster
from ray.tune.schedulers import FIFOScheduler

from orchestrator.experiment_file import build_experiment
from orchestrator.journal import RESTARTS, Journal
from orchestrator.places import Places
from orchestrator.ray_session import DRIVER_ENVIRONMENT, end_ray
from orchestrator.resources import WorkerResources
from orchestrator.runs import write_state
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.trials.engine import Population, Setup, run_trials
from orchestrator.trials.feed import ListSource, Trial
from orchestrator.trials.group import Record, create_trial, read_trials
from orchestrator.trials.schedulers import build_population, build_scheduler
from orchestrator.trials.session import Tracking
from orchestrator.trials.trial import Bundle
from search_spaces import Parameter, Space

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    *digits.RAY_WARNINGS,
    # What these tests are about would otherwise be waited for, for ever.
    pytest.mark.timeout(240),
]

WEIGHT = "objective.kd_weight"
INTERVAL, EPOCHS = 3, 9


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """One node of four cores and one GPU; Ray believes what it is told."""
    kept = dict(os.environ)
    os.environ.update(DRIVER_ENVIRONMENT)
    os.environ.pop("RAY_ADDRESS", None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 1})
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    # Ray need not find this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield cluster
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    end_ray()
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def setup(machines: Cluster, workplace: Path, teacher: Path) -> Setup:
    """Trials of one core."""
    scaling = {"scaling.workers": 1, "scaling.cpus_per_worker": 1, "scaling.gpus_per_worker": 0}
    experiment = build_experiment(digits.experiment(teacher, scaling), where="test")
    group = Folder(str(workplace))
    return Setup(
        folder=group / "trials",
        work=group,
        inputs={},
        scaling=experiment.scaling,
        resources=WorkerResources(cpus=1, gpus=0),
        metric="val/top1",
    )


class Notes:
    """Writes down how trials end."""

    def __init__(self) -> None:
        self.ends: dict[str, str] = {}

    def started(self, name: str, epoch: int, score: float | None) -> None: ...

    def reported(self, name: str, epoch: int, score: float) -> None: ...

    def ended(self, name: str, state: str, score: float | None, message: str | None) -> None:
        self.ends[name] = message or state


def run(
    setup: Setup,
    trainable: Callable[..., None],
    weights: Mapping[str, float],
    *,
    scheduler: Any = None,
    interval: int | None = None,
) -> tuple[dict[str, Record], dict[str, str]]:
    """Run trials to their ends: their records, and what was told of the ends."""
    experiment, _ = _experiment_and_settings(setup)
    trials = [Trial(name, experiment, {WEIGHT: value}, {}, "") for name, value in weights.items()]

    def create(trial: Trial) -> None:
        create_trial(setup.folder / trial.name, trial.experiment, trial.settings)

    notes = Notes()
    run_trials(
        setup,
        ListSource([] if interval else trials),
        scheduler=scheduler or FIFOScheduler(),
        create=create,
        tracking=Tracking(setup.work, Places(setup.work, False, None, None)),
        watcher=notes,
        population=Population(trials, interval) if interval else None,
        trainable=trainable,
    )
    return {record.name: record for record in read_trials(setup.folder)}, notes.ends


def _experiment_and_settings(setup: Setup) -> tuple[Experiment, dict[str, float]]:
    scaling = setup.scaling.model_dump()
    experiment = build_experiment(
        {"name": "none", "data": {"source": "digits"}, "student": {"source": "resnet8"}}
        | {"objective": {"method": "ce"}, "scaling": scaling},
        where="test",
    )
    return experiment, {WEIGHT: 1.0}


def report(epoch: int, score: float, **options: Any) -> None:
    result = {"epoch": epoch, "score": score, "current": score, "start": {}}
    ray.tune.report(result | {"metrics": {"val/top1": score}}, **options)


def finish(folder: Folder, score: float) -> None:
    folder.write_json("result.json", {"val/top1": score, "val/top1_last": score})


def member(config: dict[str, Any], *, bundle: Bundle) -> None:
    """Member `d` always fails after its fourth epoch."""
    name, done = ray.tune.get_context().get_trial_name(), 0
    checkpoint = ray.tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            done = json.loads(Path(directory, "epoch").read_text())
    score = float(config[WEIGHT])
    for epoch in range(done + 1, EPOCHS + 1):
        if name == "d" and epoch == 5:
            raise RuntimeError("member d fails")
        if epoch % INTERVAL:
            report(epoch, score)
            continue
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "epoch").write_text(json.dumps(epoch))
            report(epoch, score, checkpoint=ray.tune.Checkpoint.from_directory(directory))
    finish(bundle.folder / name, score)


def population(weights: Mapping[str, float]) -> Any:
    return build_population(
        {WEIGHT: Parameter(uniform=(0.0, 10.0))},
        {name: {WEIGHT: weight} for name, weight in weights.items()},
        interval=INTERVAL,
        epochs=EPOCHS,
        mode="max",
        seed=0,
    )


def test_a_member_that_fails_for_good_is_not_waited_for(setup: Setup) -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    scheduler = population(weights)
    records, ends = run(setup, member, weights, scheduler=scheduler, interval=INTERVAL)
    assert ends == {**dict.fromkeys("abc", "finished"), "d": "RuntimeError: member d fails"}
    assert {name: record.epochs for name, record in records.items()} == {
        **dict.fromkeys("abc", EPOCHS),
        "d": 4,
    }
    curves = {
        name: [record.history[epoch]["val/top1"] for epoch in range(1, EPOCHS + 1)]
        for name, record in records.items()
        if name != "d"
    }
    # `a`, the last of four, went on from `d` after the first comparison, and after the second, of
    # the three that were left, one from another.
    assert curves["a"][:3] == [1.0] * 3 and curves["a"][3] > 3.0
    moved = [name for name, curve in curves.items() if curve[5] != curve[6]]
    assert len(moved) == 1


class SlowToSave:
    """Takes its time to hand over the checkpoint of member `a`."""

    trial_name: str

    def save(self, *args: Any, **options: Any) -> Any:
        if self.trial_name == "a":
            time.sleep(3.0)
        return super().save(*args, **options)  # type: ignore[misc]


def punctual_member(config: dict[str, Any], *, bundle: Bundle) -> None:
    """A member after whose third epoch all others end theirs while `a` still hands over its own."""
    name, score, done = ray.tune.get_context().get_trial_name(), float(config[WEIGHT]), 0
    checkpoint = ray.tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            done = json.loads(Path(directory, "epoch").read_text())
    folder = bundle.folder.local_path
    assert folder is not None
    for epoch in range(done or 1, EPOCHS + 1):  # what it goes on from is told again, as by a run
        if epoch % INTERVAL:
            report(epoch, score)
            continue
        if epoch == INTERVAL and not done:
            (folder / name / "there").touch()
            while len(list(folder.glob("*/there"))) < 4 or (
                name != "a" and not (folder / "a" / "reports").exists()
            ):
                time.sleep(0.02)
            time.sleep(0.0 if name == "a" else 1.0)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "epoch").write_text(json.dumps(epoch))
            (folder / name / "reports").touch()
            report(epoch, score, checkpoint=ray.tune.Checkpoint.from_directory(directory))
    finish(bundle.folder / name, score)


punctual_member.__mixins__ = (SlowToSave,)  # type: ignore[attr-defined]


def test_a_member_whose_checkpoint_is_late_goes_on_all_the_same(setup: Setup) -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    scheduler = population(weights)
    records, ends = run(setup, punctual_member, weights, scheduler=scheduler, interval=INTERVAL)
    assert ends == dict.fromkeys("abcd", "finished")
    assert {record.epochs for record in records.values()} == {EPOCHS}
    curve = [records["a"].history[epoch]["val/top1"] for epoch in range(1, EPOCHS + 1)]
    assert curve[:3] == [1.0] * 3 and curve[3] > 3.0  # it went on from `d`


def steady(config: dict[str, Any], *, bundle: Bundle) -> None:
    """A trial whose score is the number in its name, in every epoch."""
    name = ray.tune.get_context().get_trial_name()
    for epoch in range(1, EPOCHS + 1):
        report(epoch, float(name))
    finish(bundle.folder / name, float(name))


def test_the_median_stops_trials_that_stay_below_it(setup: Setup) -> None:
    space = Space.model_validate(
        {
            "title": "t",
            "description": "d",
            "trials": 8,
            "scheduler": "median",
            "median": {"grace": 2},
            "parameters": {WEIGHT: {"uniform": [0.0, 1.0]}},
        }
    )
    scheduler = build_scheduler(space, epochs=EPOCHS, ended=[], going_on={})
    names = ["90", "80", "70", "60", "10", "20", "95", "15"]
    one_by_one = setup._replace(resources=WorkerResources(cpus=4, gpus=0))
    # What a kill has left of a trial between its end and the removal of its checkpoints.
    earlier = setup.folder / "50"
    create_trial(earlier, *_experiment_and_settings(setup))
    write_state(earlier, "stopped")
    earlier.write("checkpoints/epoch_0001.safetensors", b"")
    records, ends = run(one_by_one, steady, dict.fromkeys(names, 1.0), scheduler=scheduler)
    assert {name for name, end in ends.items() if end == "stopped"} == {"60", "10", "20", "15"}
    for name, end in ends.items():
        assert records[name].epochs == (2 if end == "stopped" else EPOCHS)
    assert records["50"].state == "stopped" and "checkpoints" not in earlier.names()


def meets(config: dict[str, Any], *, bundle: Bundle) -> None:
    """A trial that waits until as many run as the folder's `wanted` says."""
    name = ray.tune.get_context().get_trial_name()
    folder = bundle.folder.local_path
    assert folder is not None
    (folder / name / "devices").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    while len(list(folder.glob("*/devices"))) < int((folder.parent / "wanted").read_text()):
        time.sleep(0.02)
    report(1, 1.0)
    finish(bundle.folder / name, 1.0)


def devices(setup: Setup) -> dict[str, str]:
    folder = setup.folder.local_path
    assert folder is not None
    return {path.parent.name: path.read_text() for path in folder.glob("*/devices")}


def test_four_trials_share_a_gpu(setup: Setup) -> None:
    scaling = setup.scaling.model_copy(update={"gpus_per_worker": 0.25})
    setup.work.write("wanted", "4")
    quarter = setup._replace(scaling=scaling, resources=WorkerResources(cpus=1, gpus=0.25))
    _, ends = run(quarter, meets, dict.fromkeys("abcd", 1.0))
    assert ends == dict.fromkeys("abcd", "finished")
    assert devices(setup) == dict.fromkeys("abcd", "0")


def test_a_node_that_joins_is_used_and_its_trials_survive_it(
    setup: Setup, machines: Cluster
) -> None:
    setup.work.write("wanted", "7")  # than there will ever be
    ends: dict[str, str] = {}
    running = threading.Thread(
        target=lambda: ends.update(run(setup, meets, dict.fromkeys("abcdef", 1.0))[1])
    )
    running.start()
    digits.wait_until(lambda: len(devices(setup)) == 4, what="four trials")
    time.sleep(1.0)
    assert len(devices(setup)) == 4  # no fifth one fits
    node = machines.add_node(num_cpus=2)
    digits.wait_until(lambda: len(devices(setup)) == 6, what="six trials")
    machines.remove_node(node)
    setup.work.write("wanted", "6")
    running.join()
    assert ends == dict.fromkeys("abcdef", "finished")
    restarted = {
        name
        for name in "abcdef"
        if RESTARTS in {point.name for point in Journal(setup.folder / name).points()}
    }
    assert len(restarted) == 2

"""Trials of several workers on a Ray of two CPUs: none waits for cores that nobody will give back.

A second Ray on this machine makes sure that nothing depends on finding "the" Ray.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import digits
import pytest
import ray
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.util import placement_group_table

from orchestrator.distillation import build_work
from orchestrator.errors import RunFailed
from orchestrator.experiment_file import build_experiment
from orchestrator.inputs import read_inputs
from orchestrator.journal import RESTARTS, Journal
from orchestrator.places import Places
from orchestrator.ray_session import end_ray
from orchestrator.resources import WorkerResources
from orchestrator.storage import Folder
from orchestrator.trials.engine import Setup, run_trials
from orchestrator.trials.feed import ListSource, Trial
from orchestrator.trials.group import Record, create_trial, read_trials
from orchestrator.trials.nested import run_nested
from orchestrator.trials.session import Tracking
from orchestrator.trials.trial import Bundle, SharedInputs, run_trial

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    *digits.RAY_WARNINGS,
    # What these tests are about would otherwise be waited for, for ever.
    pytest.mark.timeout(280),
]


@pytest.fixture(scope="module")
def another_ray() -> Iterator[None]:
    """A Ray that has nothing to do with the tests, ended by the end of its input."""
    code = (
        "import ray, sys\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False)\n"
        "print('up', flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=digits.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert "up" in process.stdout.readline()
    below = digits.descendants(process.pid)
    yield
    process.communicate("")
    digits.wait_until_gone(below)


@pytest.fixture(scope="module")
def two_cpus(another_ray: None) -> Iterator[None]:
    """A Ray of two CPUs, without a dashboard to ask for the state of anything."""
    kept = dict(os.environ)
    os.environ.pop("RAY_ADDRESS", None)
    paths = [str(digits.REPOSITORY), str(Path(__file__).parent), kept.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    end_ray()
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def setup(two_cpus: None, workplace: Path, teacher: Path) -> Setup:
    """Trials of three epochs, each in two workers of one CPU."""
    spec = build_experiment(digits.experiment(teacher, {"scaling.workers": 2}), where="test")
    inputs = read_inputs(spec)
    group = Folder(str(workplace))
    work, shared = build_work(inputs, inputs.teacher, group)
    return Setup(
        folder=group / "trials",
        work=group,
        inputs={"": SharedInputs(work, [ray.put(part) for part in shared])},
        scaling=spec.scaling,
        resources=WorkerResources(cpus=1, gpus=0),
        metric="val/top1",
    )


class StopAt(FIFOScheduler):
    """Stops trials after the epochs they are listed with."""

    def __init__(self, epochs: Mapping[str, int]) -> None:
        super().__init__()
        self._epochs = epochs

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = result["epoch"] >= self._epochs.get(trial.config["name"], result["epoch"] + 1)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


class Ignore:
    """Shows nothing."""

    def started(self, name: str, epoch: int, score: float | None) -> None: ...

    def reported(self, name: str, epoch: int, score: float) -> None: ...

    def ended(self, name: str, state: str, score: float | None, message: str | None) -> None: ...


def run_noting_its_process(config: dict[str, Any], *, bundle: Bundle) -> None:
    """A trial whose process can be found."""
    (bundle.folder / config["name"]).write("process", str(os.getpid()))
    run_trial(config, bundle=bundle)


def run(setup: Setup, names: str, *, epochs: int = 3, stop: Mapping[str, int]) -> list[Record]:
    """Run trials to their ends."""
    base = setup.inputs[""].work.experiment
    train = base.train.model_copy(update={"epochs": epochs})
    experiment = base.model_copy(update={"train": train})

    def create(trial: Trial) -> None:
        create_trial(setup.folder / trial.name, trial.experiment, trial.settings)

    run_trials(
        setup,
        ListSource([Trial(name, experiment, {}, {}, "") for name in names]),
        scheduler=StopAt(stop),
        create=create,
        tracking=Tracking(setup.work, Places(setup.work, False, None, None)),
        watcher=Ignore(),
        trainable=run_noting_its_process,
    )
    return read_trials(setup.folder)


@contextmanager
def killing(setup: Setup, victim: Callable[[], int]) -> Iterator[list[int]]:
    """Kill a process once trial `a` has saved an epoch; the process is in the list afterwards."""
    folder = setup.folder.local_path
    assert folder is not None
    killed: list[int] = []

    def kill() -> None:
        saved = folder / "a" / "checkpoints"
        digits.wait_until(lambda: list(saved.glob("*.json")), what="first epoch")
        killed.append(victim())
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield killed
    thread.join()
    assert killed


def held() -> list[str]:
    """States of the placement groups that hold or want something."""
    return [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"]


def cleaners() -> int:
    """How many processes there are that Ray Train starts to clean up after its controllers."""
    return len(digits.titled("ray::PlacementGroupCleaner"))


def test_trials_that_are_stopped_early_give_way_to_the_next(setup: Setup) -> None:
    before = cleaners()
    records = run(setup, "abcd", stop={"a": 1, "c": 2})
    assert [(record.name, record.state, record.epochs) for record in records] == [
        ("a", "stopped", 1),
        ("b", "finished", 3),
        ("c", "stopped", 2),
        ("d", "finished", 3),
    ]
    digits.wait_until(lambda: not held(), timeout=10, what="release of all placement groups")
    digits.wait_until(lambda: cleaners() <= before, timeout=10, what="end of Ray's cleaners")
    # Nobody trained on after the stop and put checkpoints where they had been deleted.
    assert "checkpoints" not in (setup.folder / "a").names()


def test_the_cores_of_a_trial_whose_process_is_killed_serve_its_next_attempt(
    setup: Setup,
) -> None:
    process = setup.folder / "a"
    with killing(setup, lambda: int(process.read("process") or 0)) as killed:
        (record,) = run(setup, "a", epochs=40, stop={})
    assert int(process.read("process") or 0) != killed[0]
    assert (record.state, record.epochs) == ("finished", 40)
    digits.wait_until(lambda: not held(), timeout=10, what="release of all placement groups")


def test_a_killed_worker_is_replaced_and_no_epoch_is_reported_twice(setup: Setup) -> None:
    process = setup.folder / "a"
    with killing(setup, lambda: digits.train_workers()[-1].pid):
        (record,) = run(setup, "a", epochs=40, stop={})
    assert (record.state, record.epochs) == ("finished", 40)
    points = Journal(process).points()
    assert len({(point.step, point.name) for point in points}) == len(points)
    # The trial itself did not fail.
    assert RESTARTS not in {point.name for point in points}


def test_workers_that_never_fit_fail_after_the_wait_in_a_sentence(setup: Setup) -> None:
    work, shared = setup.inputs[""]
    scaling = work.experiment.scaling.model_copy(update={"workers": 3, "wait_s": 0})
    experiment = work.experiment.model_copy(update={"scaling": scaling})
    reported: list[int] = []
    message = r"scaling\.workers: 3 workers of 1 CPU are needed, but within 30 s .* on 2 CPU"
    with pytest.raises(RunFailed, match=message):
        run_nested(
            work._replace(experiment=experiment),
            shared,
            setup.resources,
            report=lambda epoch, metrics: reported.append(epoch),
        )
    assert reported == []
    assert held() == []

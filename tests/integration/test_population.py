"""A population on a real Ray, with members that train nothing."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import digits
import pytest
import ray.tune

from orchestrator.experiment_file import build_experiment
from orchestrator.places import Places
from orchestrator.resources import WorkerResources
from orchestrator.storage import Folder
from orchestrator.trials.engine import Population, Setup, run_trials
from orchestrator.trials.feed import ListSource, Trial
from orchestrator.trials.group import create_trial, read_trials
from orchestrator.trials.schedulers import build_population
from orchestrator.trials.session import Tracking
from orchestrator.trials.trial import Bundle
from search_spaces import Parameter

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray's own: sockets and processes that its shutdown leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
    # The members that are left would otherwise wait for ever.
    pytest.mark.timeout(120),
]

WEIGHT = "objective.kd_weight"
INTERVAL, EPOCHS = 3, 9


def member(config: dict[str, Any], *, bundle: Bundle) -> None:
    """Member `d` always fails after its fourth epoch."""
    name = ray.tune.get_context().get_trial_name()
    folder, done = bundle.folder / name, 0
    checkpoint = ray.tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            done = json.loads(Path(directory, "epoch").read_text())
    for epoch in range(done + 1, EPOCHS + 1):
        if name == "d" and epoch == 5:
            raise RuntimeError("member d fails")
        score = float(config[WEIGHT])
        result = {"epoch": epoch, "score": score, "current": score, "start": {}}
        result["metrics"] = {"val/top1": score}
        if epoch % INTERVAL:
            ray.tune.report(result)
            continue
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "epoch").write_text(json.dumps(epoch))
            ray.tune.report(result, checkpoint=ray.tune.Checkpoint.from_directory(directory))
    folder.write_json("result.json", {"val/top1": float(config[WEIGHT]), "val/top1_last": 0.0})


class Notes:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.ends: dict[str, str] = {}

    def started(self, name: str, epoch: int, score: float | None) -> None: ...

    def reported(self, name: str, epoch: int, score: float) -> None: ...

    def ended(self, name: str, state: str, score: float | None, message: str | None) -> None:
        self.ends[name] = message or state


def test_a_member_that_fails_for_good_is_not_waited_for(
    cluster: str, workplace: Path, teacher: Path
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray need not find this file
    experiment = build_experiment(digits.experiment(teacher, {}), where="test")
    group = Folder(str(workplace))
    setup = Setup(
        folder=group / "trials",
        work=group,
        inputs={},
        scaling=experiment.scaling.model_copy(update={"workers": 1}),
        resources=WorkerResources(cpus=1, gpus=0),
        metric="val/top1",
    )
    weights = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    members = [
        Trial(name, experiment, {WEIGHT: weight}, {}, "") for name, weight in weights.items()
    ]

    def create(trial: Trial) -> None:
        create_trial(setup.folder / trial.name, trial.experiment, trial.settings)

    notes = Notes()
    run_trials(
        setup,
        ListSource([]),
        scheduler=build_population(
            {WEIGHT: Parameter(uniform=(0.0, 10.0))},
            {trial.name: trial.settings for trial in members},
            interval=INTERVAL,
            epochs=EPOCHS,
            mode="max",
            seed=0,
        ),
        create=create,
        tracking=Tracking(group, Places(group, False, None, None)),
        watcher=notes,
        population=Population(members, INTERVAL),
        trainable=member,
    )
    assert notes.ends == {
        "a": "finished",
        "b": "finished",
        "c": "finished",
        "d": "RuntimeError: member d fails",
    }
    records = {record.name: record for record in read_trials(setup.folder)}
    assert {name: record.epochs for name, record in records.items()} == {
        "a": EPOCHS,
        "b": EPOCHS,
        "c": EPOCHS,
        "d": 4,
    }
    # `a`, the last of four, went on from `d` after the first comparison, and after the second,
    # which is among three, whoever was last from the best of those.
    curves = {
        name: [record.history[epoch]["val/top1"] for epoch in range(1, EPOCHS + 1)]
        for name, record in records.items()
        if name != "d"
    }
    assert curves["a"][:3] == [1.0] * 3 and curves["a"][3] > 3.0
    moved = [name for name, curve in curves.items() if curve[5] != curve[6]]
    assert len(moved) == 1

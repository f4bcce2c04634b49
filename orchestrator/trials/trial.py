"""What runs in the process of one trial."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.tune
import torch
from ray import ObjectRef

from orchestrator.experiment_file import build_experiment
from orchestrator.journal import Journal
from orchestrator.reporter import Ranks
from orchestrator.resources import WorkerResources
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.trials import population
from orchestrator.trials.group import best_so_far
from orchestrator.trials.nested import run_nested
from orchestrator.work import Shared, Work
from orchestrator.worker import run_work

INPUTS_KEY = "inputs"
"""Key of a trial's configuration that names its shared inputs."""


class SharedInputs(NamedTuple):
    """What trials on the same images and teacher have in common."""

    work: Work
    """With an experiment and a folder that each trial replaces by its own."""
    shared: list[ObjectRef]
    """The parts of `Shared` in Ray's object store: one copy a node, read in place."""


class Bundle(NamedTuple):
    """What every trial of a group is given."""

    folder: Folder
    """Holds the trials' folders."""
    inputs: Mapping[str, SharedInputs]
    resources: WorkerResources
    metric: str
    """Name of the validation metric that trials are judged by."""
    population_interval: int | None
    """Epochs between two exchanges under population based training, else None."""


def run_trial(config: dict[str, Any], *, bundle: Bundle) -> None:
    """Train the run whose folder has this trial's name, from its newest checkpoint."""
    name = ray.tune.get_context().get_trial_name()
    folder = bundle.folder / name
    if bundle.population_interval is not None:
        population.adopt(folder, config)
    experiment = build_experiment(
        folder.read_json("spec.json"), where=f"{folder.location}/spec.json"
    )
    base, shared = bundle.inputs[config[INPUTS_KEY]]
    work = base._replace(experiment=experiment, run=folder)
    reporter = _TuneReporter(folder, bundle, experiment)
    if experiment.scaling.workers > 1:
        run_nested(
            work,
            shared,
            bundle.resources,
            report=lambda epoch, metrics: reporter.report({epoch: metrics}),
        )
        return
    torch.set_num_threads(bundle.resources.cpus)
    run_work(work, Shared(*ray.get(shared)), reporter)


class _TuneReporter:
    """Hands each epoch to Tune, whose driver writes it down and decides whether to go on."""

    def __init__(self, folder: Folder, bundle: Bundle, experiment: Experiment) -> None:
        use_gpu = bundle.resources.gpus > 0 and torch.cuda.is_available()
        self.ranks = Ranks(device=torch.device("cuda" if use_gpu else "cpu"))
        self._folder = folder
        self._bundle = bundle
        self._experiment = experiment
        self._searched = folder.read_json("trial.json")["settings"]
        # What the driver has written down already is known to its scheduler too.
        self._known = max((point.step for point in Journal(folder).points()), default=0)
        if bundle.population_interval and self._known % bundle.population_interval == 0:
            self._known -= 1  # it waited to be compared, or is told that this was done
        self._start: dict[str, float] = {}
        self._history: dict[int, dict[str, float]] = {}

    def report(self, metrics_by_step: Mapping[int, Mapping[str, float]]) -> None:
        """Report what the driver does not know; a trial that is stopped ends in here."""
        metric, interval = self._bundle.metric, self._bundle.population_interval
        for step, metrics in sorted(metrics_by_step.items()):
            if step == 0:  # no epoch, so nothing that a scheduler could use: goes with the first
                self._start = dict(metrics)
                continue
            self._history[step] = dict(metrics)
            if step <= self._known:
                continue
            if interval is not None:
                metrics = {**metrics, **self._population_metrics(step)}
            result = {
                "epoch": step,
                "score": best_so_far(self._history, metric)[step],
                "current": metrics[metric],
                "metrics": dict(metrics),
                "start": self._start,
            }
            self._start = {}
            if interval is None or step % interval:
                ray.tune.report(result)
                continue
            with tempfile.TemporaryDirectory() as directory:
                population.pack(self._folder, step, Path(directory))
                checkpoint = ray.tune.Checkpoint.from_directory(directory)
                ray.tune.report(result, checkpoint=checkpoint)

    def _population_metrics(self, epoch: int) -> dict[str, float]:
        """The weights in force, which MLflow's parameters cannot show as they change."""
        now = self._experiment.objective.at(epoch)
        taken = self._folder.read_json(population.MUTATIONS) or []
        keys = (path.rsplit(".", 1)[-1] for path in self._searched)
        return {"pbt/exploits": len(taken)} | {f"pbt/{key}": getattr(now, key) for key in keys}


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in one line, by the last part of their paths."""
    return ", ".join(
        f"{path.rsplit('.', 1)[-1]} {value:.4g}"
        if isinstance(value, float)
        else f"{path.rsplit('.', 1)[-1]} {value if isinstance(value, str) else json.dumps(value)}"
        for path, value in settings.items()
    )

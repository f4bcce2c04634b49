"""What bookkeeping and tracking cost a large search, and whether planning holds on many nodes.

    python benchmarks/search_scale.py overhead --trials 1000 --pairs 3
    python benchmarks/search_scale.py memory
    python benchmarks/search_scale.py nodes --nodes 64

`overhead` runs no-op trials (three reports of eight metrics each) through the search's own engine,
with its folders, its Optuna study and MLflow in SQLite, and the same no-op through Ray Tune alone
without any tracking, in turns in one Ray. It counts until the last point is in MLflow. `memory`
reads the driver's resident memory after 100 and after 1,000 trials. `nodes` starts Ray nodes with
made-up cores on this machine and compares the concurrency that is planned with the one that is
reached. Results and how they were obtained are in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from orchestrator.data import load_dataset
from orchestrator.distillation import build_work, session
from orchestrator.experiment_file import build_experiment, flatten
from orchestrator.inputs import read_inputs
from orchestrator.places import find_places
from orchestrator.progress import Display
from orchestrator.ray_session import end_ray, live_nodes
from orchestrator.resources import WorkerResources, per_trial
from orchestrator.search.source import INPUTS, SpaceSource
from orchestrator.search.study import Study
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.tracking import request_tracking
from orchestrator.trials.board import Board
from orchestrator.trials.engine import DRIVER_ENVIRONMENT, Setup, run_trials
from orchestrator.trials.group import create_trial
from orchestrator.trials.session import Tracking
from orchestrator.trials.tracking import request_trial
from orchestrator.trials.trial import Bundle, SharedInputs
from search_spaces import load_space

DEFAULT_TRIALS = 50
"""Of Tune as it comes, as each takes a second."""
REPORTS = 3
METRICS = ["train/loss", "train/ce", "train/kd", "train/contrast", "val/top1", "val/loss"]
METRICS += ["dcd/temperature", "time/images_per_second"]


def no_op(config: dict[str, Any], *, bundle: Bundle) -> None:
    """A trial that only reports, as the trained ones do."""
    name = tune.get_context().get_trial_name()
    for epoch in range(1, REPORTS + 1):
        metrics = {key: float(epoch) for key in METRICS}
        tune.report({"epoch": epoch, "score": 1.0, "current": 1.0, "metrics": metrics, "start": {}})
    result = {"val/top1": 1.0, "val/top1_last": 1.0, "best_epoch": 1.0}
    (bundle.folder / name).write_json("result.json", result)


def bare(config: dict[str, Any]) -> None:
    """The same for Ray Tune alone."""
    for epoch in range(1, REPORTS + 1):
        metrics = {key: float(epoch) for key in METRICS}
        tune.report({"epoch": epoch, "score": 1.0, "metrics": metrics})


def experiment(folder: Path, *, tracked: bool = True, **scaling: Any) -> Experiment:
    """What the no-op trials would train; only its spec is used."""
    values = {
        "name": "scale",
        "data": {"source": "digits", "grey_to_rgb": True, "resize": 16, "test_fraction": 0.2},
        "student": {"source": "resnet8"},
        "objective": {"method": "ce"},
        "train": {"epochs": REPORTS},
        "scaling": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0} | scaling,
        "storage": {"path": str(folder / "runs")},
        "tracking": {"enabled": tracked, "uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
    return build_experiment(values, where="benchmark")


def search(base: Experiment, num_trials: int, trainable: Any = no_op) -> dict[str, float]:
    """Run no-op trials through the search's engine; seconds until done, and until all is sent."""
    places = find_places(base)
    folder = Folder(str(Path(places.storage.location) / f"scale-{time.time_ns()}"))
    folder.write_json("group.json", {"kind": "search", "definition": {}, "request": {}})
    space = load_space("optim", Experiment).model_copy(update={"searcher": "random", "first": {}})
    inputs = read_inputs(base)
    work, shared = build_work(inputs, None, folder)
    setup = Setup(
        folder=folder / "trials",
        work=folder,
        inputs={INPUTS: SharedInputs(work, [ray.put(part) for part in shared])},
        scaling=base.scaling,
        resources=WorkerResources(1, 0.0),
        metric="val/top1",
    )
    tracking = Tracking(folder, places)
    if tracking.on:
        assert places.tracking_uri is not None
        request_tracking(
            folder,
            uri=places.tracking_uri,
            experiment="scale",
            run_name="scale",
            tags={},
            params={},
            texts={},
            artifact_root=places.artifact_root,
        )
    study = Study(space, flatten(base.model_dump()), num_trials=num_trials, seed=0, tried=[])
    source = SpaceSource(
        space,
        study,
        base=base,
        group_name="scale",
        dataset=load_dataset(base.data),
        trials=folder / "trials",
        records=[],
        total=num_trials,
        say=print,
    )

    def create(trial: Any) -> None:
        run = folder / "trials" / trial.name
        create_trial(run, trial.experiment, trial.settings, **trial.details)
        request_trial(
            run, trial.experiment, trial.settings, places, group=folder, role="trial", tags={}
        )

    started = time.perf_counter()
    tracking.start()
    with (
        open(os.devnull, "w") as nowhere,
        Board(
            Display(_console(nowhere)),
            what="trials",
            total=num_trials,
            epochs=REPORTS,
            settings_of=lambda name: {},
            higher_is_better=True,
            ended={},
        ) as board,
    ):
        run_trials(
            setup,
            source,
            scheduler=FIFOScheduler(),
            create=create,
            tracking=tracking,
            watcher=board,
            trainable=trainable,
        )
    ran = time.perf_counter() - started
    tracking.finish("FINISHED", metrics={}, tags={})
    report = tracking.close(3600.0)
    sent = time.perf_counter() - started
    if report is not None and report.pending:
        raise RuntimeError(f"not all was sent: {report.pending}")
    return {"ran_s": ran, "sent_s": sent, "rss_mib": _rss_mib()}


def tune_alone(num_trials: int, *, reuse_actors: bool = True) -> float:
    """Seconds that Ray Tune takes for as many no-ops by itself, without loggers.

    By default Tune starts a process per trial; with `reuse_actors` a process goes on with the next
    trial, as in the search.
    """
    for key, value in DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        tune.Tuner(
            tune.with_resources(bare, {"CPU": 1}),
            param_space={
                "lr": tune.loguniform(1e-3, 1.0),
                "weight_decay": tune.loguniform(1e-5, 1e-2),
            },
            tune_config=tune.TuneConfig(num_samples=num_trials, reuse_actors=reuse_actors),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        return time.perf_counter() - started


def overhead(num_trials: int, pairs: int) -> None:
    """Pairs in turns, each in this process with one Ray."""
    ratios = []
    with tempfile.TemporaryDirectory() as name, session(experiment(Path(name)).scaling):
        tune_alone(4), search(experiment(Path(name)), 4)  # imports and first actors
        for pair in range(pairs):
            order = [0, 1] if pair % 2 == 0 else [1, 0]
            seconds = [0.0, 0.0]
            for which in order:
                if which == 0:
                    seconds[0] = tune_alone(num_trials)
                else:
                    seconds[1] = search(experiment(Path(name)), num_trials)["sent_s"]
            ratios.append(seconds[1] / seconds[0])
            print(
                f"pair {pair + 1}: Tune alone {seconds[0]:.1f} s, search with MLflow "
                f"{seconds[1]:.1f} s, ratio {ratios[-1]:.2f}",
                flush=True,
            )
        by_default = tune_alone(DEFAULT_TRIALS, reuse_actors=False)
    print(
        f"{num_trials} trials, {pairs} pairs: ratio median {statistics.median(ratios):.2f}, "
        f"min {min(ratios):.2f}, max {max(ratios):.2f}"
    )
    print(
        f"Tune with a process per trial, its default, {DEFAULT_TRIALS} trials: {by_default:.1f} s"
    )


def memory() -> None:
    """Resident memory of the driver after so many trials, each number in a fresh process."""
    for alone in (False, True):
        for num_trials in (100, 1000):
            command = [sys.executable, __file__, "one", "--trials", str(num_trials)]
            command += ["--alone"] if alone else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            what = "Tune alone" if alone else "search"
            print(f"{what}, {num_trials} trials: {done.stdout.splitlines()[-1]}", flush=True)


def one(num_trials: int, *, alone: bool) -> None:
    """One search, or Tune alone; prints what it took as JSON."""
    with tempfile.TemporaryDirectory() as name, session(experiment(Path(name)).scaling):
        if alone:
            print(json.dumps({"ran_s": tune_alone(num_trials), "rss_mib": _rss_mib()}))
        else:
            print(json.dumps(search(experiment(Path(name)), num_trials)))


def nodes(num_nodes: int, cpus: int) -> None:
    """Nodes with made-up cores: planned against reached concurrency."""
    from ray.cluster_utils import Cluster

    started = time.perf_counter()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(num_nodes):
        cluster.add_node(num_cpus=cpus)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        up = time.perf_counter() - started
        print(f"{len(live_nodes())} nodes up after {up:.0f} s", flush=True)
        with tempfile.TemporaryDirectory() as name:
            for workers in (1, 4):
                base = experiment(Path(name), tracked=False, workers=workers, cpus_per_worker=2)
                found = per_trial(base.scaling, live_nodes(), 10_000)
                assert found is not None
                expected = num_nodes * (cpus // 2) // workers
                print(
                    f"{workers} workers of 2 CPU a trial: planned {found[1]} at once, "
                    f"{num_nodes} x {cpus} CPU have room for {expected}",
                    flush=True,
                )
                assert found[1] == expected
    finally:
        end_ray()
        cluster.shutdown()


def _rss_mib() -> float:
    return round(psutil.Process().memory_info().rss / 2**20, 1)


def _console(file: Any) -> Any:
    from rich.console import Console

    return Console(file=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, default in (("overhead", 1000), ("one", 1000)):
        command = commands.add_parser(name)
        command.add_argument("--trials", type=int, default=default)
        if name == "overhead":
            command.add_argument("--pairs", type=int, default=3)
        else:
            command.add_argument("--alone", action="store_true")
    commands.add_parser("memory")
    command = commands.add_parser("nodes")
    command.add_argument("--nodes", type=int, default=64)
    command.add_argument("--cpus", type=int, default=8)
    args = parser.parse_args()
    match args.command:
        case "overhead":
            overhead(args.trials, args.pairs)
        case "memory":
            memory()
        case "one":
            one(args.trials, alone=args.alone)
        case "nodes":
            nodes(args.nodes, args.cpus)


if __name__ == "__main__":
    main()

"""Runs many trials on Ray Tune: from their folders, into their folders."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ray import tune

from orchestrator.error_text import cause
from orchestrator.errors import OrchestratorError, RunFailed
from orchestrator.ray_session import live_nodes
from orchestrator.resources import WorkerResources, capacity, trial_resources
from orchestrator.runs import read_state
from orchestrator.spec import ScalingSpec
from orchestrator.storage import Folder
from orchestrator.trials.book import Book, Watcher, clear_ended
from orchestrator.trials.feed import Feed, Source, Trial
from orchestrator.trials.nested import stoppable
from orchestrator.trials.session import Tracking
from orchestrator.trials.trial import INPUTS_KEY, Bundle, SharedInputs, run_trial

_RETRIES = 1
"""A trial that fails is tried again this often, from its newest checkpoint."""

DRIVER_ENVIRONMENT = {
    # Tune's own files of each trial: ours say more.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A search is resumed from its trials' folders; Tune's snapshots are never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # Relative paths of the user's have been made absolute.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Its other way to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Setup(NamedTuple):
    """What a session of trials runs on."""

    folder: Folder
    """Holds the trials' folders."""
    work: Folder
    """For files of Tune's that are of no use afterwards; all nodes reach it."""
    inputs: Mapping[str, SharedInputs]
    scaling: ScalingSpec
    resources: WorkerResources
    """Of each worker."""
    metric: str


class Population(NamedTuple):
    """The members of population based training."""

    members: list[Trial]
    interval: int


def run_trials(
    setup: Setup,
    source: Source,
    *,
    scheduler: Any,
    create: Callable[[Trial], None],
    tracking: Tracking,
    watcher: Watcher,
    ended_before: int = 0,
    population: Population | None = None,
    students: bool = False,
    trainable: Callable[..., None] = run_trial,
) -> None:
    """Run what a source gives until it has no more.

    Args:
        setup: what it runs on.
        source: where the trials come from, and who hears what becomes of them.
        scheduler: Tune's scheduler.
        create: writes a trial down before it starts.
        tracking: MLflow's side of the group.
        watcher: shows what happens.
        ended_before: how many trials ended without failing in earlier sessions.
        population: all trials at once, for population based training; the source then only hears.
        students: whether the trained students become MLflow models.
        trainable: what a trial runs.

    Raises:
        RunFailed: every trial failed, or Tune did.
        Interrupted: a signal came; trials that ran are marked and go on from their checkpoints.
    """
    for key, value in DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are told by the board
    book = Book(
        setup.folder,
        source=source,
        metric=setup.metric,
        tracking=tracking,
        watcher=watcher,
        ended_before=ended_before,
        students=students,
    )

    for name in setup.folder.names():  # an earlier session may have been killed before it could
        if read_state(setup.folder / name) in ("finished", "stopped"):
            clear_ended(setup.folder / name)

    def take() -> Trial | None:
        trial = source.next()
        if trial is not None:
            create(trial)
        return trial

    feed = Feed(take, room=lambda: room(setup), halted=lambda: book.halted or book.closed)
    if population is not None:
        for trial in population.members:
            create(trial)
    try:
        _fit(_tuner(trainable, setup, book, scheduler, None if population else feed, population))
    except BaseException:
        book.close()
        raise
    finally:
        with suppress(OSError):
            setup.work.delete("tune")
    if book.halted:
        raise RunFailed(_common(book.errors))


def room(setup: Setup) -> int:
    """How many trials fit on the cluster now; at least one, which waits for its turn."""
    return max(1, capacity(setup.scaling, live_nodes(), setup.resources))


def _tuner(
    trainable: Callable[..., None],
    setup: Setup,
    book: Book,
    scheduler: Any,
    feed: Feed | None,
    population: Population | None,
) -> tune.Tuner:
    bundle = Bundle(
        folder=setup.folder,
        inputs=setup.inputs,
        resources=setup.resources,
        metric=setup.metric,
        population_interval=population.interval if population else None,
    )
    bundled = tune.with_parameters(trainable, bundle=bundle)
    placed = tune.with_resources(
        stoppable(bundled) if setup.scaling.workers > 1 else bundled,
        trial_resources(setup.scaling, setup.resources),
    )
    param_space: dict[str, Any] = {}
    if population is not None:
        param_space = {
            "name": tune.grid_search([trial.name for trial in population.members]),
            INPUTS_KEY: population.members[0].inputs,
        }
    return tune.Tuner(
        placed,
        param_space=param_space,
        tune_config=tune.TuneConfig(
            search_alg=feed,
            scheduler=scheduler,
            num_samples=-1 if feed else 1,
            # A process that has trained one trial is ready for the next at once.
            reuse_actors=setup.scaling.workers <= 1,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            # Never an earlier session's: Tune would mix their files.
            name=f"session-{time.time_ns()}",
            storage_path=(setup.work / "tune").location,
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
            callbacks=[book],
            verbose=0,
        ),
    )


def _name(trial: Any) -> str:
    return str(trial.config["name"])


def _fit(tuner: tune.Tuner) -> None:
    """Fit in a thread, so that signals are ours to handle in the main one."""
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit, name="ray-tune-fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if errors:
        error = errors[0]
        inner = error.__cause__ or error
        if isinstance(inner, OrchestratorError | OSError):
            raise inner
        raise RunFailed(f"Ray Tune failed: {cause(inner)}") from error


def _common(errors: Mapping[str, str]) -> str:
    """The error that most trials had."""
    texts = list(errors.values())
    common = max(set(texts), key=texts.count)
    count = texts.count(common)
    return (
        f"all {len(texts)} trials so far have failed, {count} of them so: {common}. No other was "
        "started: mend the cause and resume, which tries them again"
    )

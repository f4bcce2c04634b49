"""One distillation from the driver's side: check everything, then run, track and finish."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import NamedTuple

import torch

from orchestrator.checkpoints import Checkpoints
from orchestrator.computation import computation_tags
from orchestrator.data.balance import CLASS_TABLE
from orchestrator.errors import Interrupted, UserError
from orchestrator.inputs import Inputs, Teacher, fitted_teacher, read_inputs
from orchestrator.journal import Journal
from orchestrator.mlflow_client import without_password
from orchestrator.places import (
    Places,
    cache_place,
    check_places,
    describe_cache,
    find_places,
    keep_tracking,
)
from orchestrator.progress import Display
from orchestrator.reporter import ProcessReporter
from orchestrator.resources import joins_cluster, local_resources
from orchestrator.run_tracking import final_metrics, lineage, start_tracking
from orchestrator.runs import (
    Run,
    create_run,
    forget_run,
    locked,
    open_run,
    wait_unlocked,
    write_state,
)
from orchestrator.spec import Experiment, ScalingSpec
from orchestrator.storage import Folder, check_writable
from orchestrator.tracking import SyncReport, finish_request
from orchestrator.work import Shared, Work
from orchestrator.worker import run_work

logger = logging.getLogger(__name__)

_TRACKING_PATIENCE_S = 60.0
"""How long a finished run waits for a tracking server that answers to take the student."""
_INTERRUPTED_PATIENCE_S = 0.7
"""The same after a signal: `ray job stop` kills 3 s after SIGTERM."""


class Outcome(NamedTuple):
    """What a distillation leaves."""

    run: str
    folder: Folder
    metrics: dict[str, float]
    """The final ones; accuracies in percent."""
    already_finished: bool
    tracking: SyncReport | None
    """None with tracking off, or when nothing was left to do."""


def distill(
    experiment: Experiment, *, new: bool = False, display: Display | None = None
) -> Outcome:
    """Distil a student, or go on with a run that was cut off.

    Args:
        experiment: what to run.
        new: start a fresh run under a numbered name when the name is taken.
        display: where progress is shown.

    Raises:
        UserError: the input is wrong; nothing was started or written.
        RunFailed: training could not go on; the newest checkpoint is kept.
        Interrupted: a signal came; the same command goes on from the newest checkpoint.
    """
    display = display or Display()
    places = find_places(experiment)
    check_places(places, experiment)
    run = open_run(experiment, places.storage, new=new)
    places = keep_tracking(places, run.folder, experiment)
    check_writable(run.folder, setting="storage.path")
    if run.state == "finished":
        return _finished(run)
    check_resources(experiment.scaling)
    try:
        with display.step(f"{run.experiment.name}: reading images and networks"):
            inputs = read_inputs(run.experiment)
    except Interrupted as error:
        error.run = run.experiment.name if run.state is not None else None
        raise
    for note in inputs.notes:
        display.say(f"note: {note}")
    try:
        with _claimed(run, inputs, display=display), session(experiment.scaling):
            check_cluster(experiment.scaling, places)
            teacher = ready_teacher(inputs, places, display=display)
            return _run(run, inputs, teacher, places, role="student", display=display)
    except Interrupted as error:
        error.run = run.experiment.name
        raise


def check_resources(scaling: ScalingSpec) -> None:
    """Refuse more workers or GPUs than a Ray on this machine alone would have."""
    if scaling.workers == 0:
        return
    if not joins_cluster():
        local_resources(scaling)


def check_cluster(scaling: ScalingSpec, places: Places) -> None:
    """Refuse a cluster whose nodes would not reach the storage."""
    if scaling.workers > 0 and joins_cluster():
        from orchestrator.ray_session import check_storage_is_shared

        check_storage_is_shared(storage_is_default=places.storage_is_default)


def session(scaling: ScalingSpec, *, dashboard: bool = False) -> AbstractContextManager[None]:
    """Ray for as long as the context lasts, joined or started once; nothing with 0 workers."""
    if scaling.workers == 0:
        return nullcontext()
    from orchestrator.ray_session import ray_session

    return ray_session(dashboard=dashboard)


def _finished(run: Run) -> Outcome:
    metrics = run.folder.read_json("result.json")
    return Outcome(run.experiment.name, run.folder, metrics, True, None)


def ready_teacher(inputs: Inputs, places: Places, *, display: Display) -> Teacher | None:
    """The teacher with its weights; one that is to be trained first is, unless it has been."""
    spec, fit = inputs.experiment.teacher, inputs.fit
    if fit is None or spec is None:
        return inputs.teacher
    fitted = _fit_teacher(fit, places, display=display)
    return fitted_teacher(spec, fit, fitted.folder.location, fitted.run)


def build_work(
    inputs: Inputs, teacher: Teacher | None, folder: Folder, *, one_of_many: bool = False
) -> tuple[Work, Shared]:
    """What a worker needs to train the student of these inputs in a run's folder.

    Args:
        inputs: of the run.
        teacher: with its weights.
        folder: of the run.
        one_of_many: whether other runs see the same images and teacher.
    """
    keeps = teacher is not None and not inputs.dataset.is_streamed
    work = Work(
        experiment=inputs.experiment,
        teacher=teacher.spec if teacher else None,
        teacher_classes=teacher.num_classes if teacher else None,
        teacher_pixels=teacher.pixels if teacher else None,
        run=folder,
        lineage=lineage(inputs, teacher),
        start=inputs.start,
        cache=cache_place(inputs.experiment, one_of_many=one_of_many) if keeps else None,
    )
    state = teacher.state if teacher else None
    return work, Shared(inputs.dataset, state, inputs.student_state)


def _fit_teacher(fit: Inputs, places: Places, *, display: Display) -> Outcome:
    """The finished run that trains the teacher."""
    run = open_run(fit.experiment, places.storage, new=False)
    if run.state == "finished":
        return _finished(run)
    wait_unlocked(run.folder, say=display.say)  # another command may be training the same teacher
    with _claimed(run, fit, display=display):
        run = open_run(fit.experiment, places.storage, new=False)
        if run.state == "finished":
            return _finished(run)
        return _run(run, fit, None, places, role="teacher", display=display)


@contextmanager
def _claimed(run: Run, inputs: Inputs, *, display: Display) -> Iterator[None]:
    """The run's folder for this process alone, with the spec inside for `--resume` to find."""
    with locked(run.folder):
        if run.replaces:
            display.say(f"{run.experiment.name} had finished no epoch: starting it anew")
            forget_run(run.folder)
        _check_same_inputs(run.folder, inputs)
        create_run(run, fingerprints=_fingerprints(inputs))
        try:
            yield
        except UserError:
            if run.state is None and run.folder.read("state.json") is None:
                forget_run(run.folder)  # refused before it began
            raise


def _run(
    run: Run,
    inputs: Inputs,
    teacher: Teacher | None,
    places: Places,
    *,
    role: str,
    display: Display,
) -> Outcome:
    experiment, folder = run.experiment, run.folder
    epochs = experiment.train.epochs
    write_state(folder, "running")
    tracker = start_tracking(run, inputs, teacher, places, role=role)
    display.say(f"{experiment.name}: {folder.location}")
    if places.tracking_uri is not None:
        display.say(f"{experiment.name}: tracked at {without_password(places.tracking_uri)}")
    done = Checkpoints(folder / "checkpoints", keep=experiment.storage.keep).latest()
    if done is not None:
        display.say(f"{experiment.name}: going on after epoch {done.epoch} of {epochs}")
    try:
        with display.epochs(Journal(folder), total=experiment.train.epochs):
            metrics = _train(run, inputs, teacher, places, display=display)
    except (Interrupted, KeyboardInterrupt):
        write_state(folder, "interrupted")
        if tracker is not None:
            finish_request(folder, status="KILLED", metrics={}, tags={}, student=False)
            tracker.close(_INTERRUPTED_PATIENCE_S)
        raise
    except BaseException as error:
        with suppress(OSError):  # a full disk may be what failed
            write_state(folder, "failed", message=str(error))
            if tracker is not None:
                tags = {"error": str(error)}
                finish_request(folder, status="FAILED", metrics={}, tags=tags, student=False)
                tracker.close(_TRACKING_PATIENCE_S)
        raise
    report = None
    if tracker is not None:
        # Before the state, so that whatever happens between, `dcd sync` knows of the student.
        finish_request(
            folder,
            status="FINISHED",
            metrics=final_metrics(metrics),
            step=epochs,
            tags=computation_tags(folder),
            student=True,
            artifacts=[CLASS_TABLE],
        )
    write_state(folder, "finished")
    if tracker is not None:
        with display.step(f"{experiment.name}: sending the student to MLflow"):
            report = tracker.close(_TRACKING_PATIENCE_S)
    return Outcome(experiment.name, folder, metrics, False, report)


def _train(
    run: Run, inputs: Inputs, teacher: Teacher | None, places: Places, *, display: Display
) -> dict[str, float]:
    experiment = inputs.experiment
    work, shared = build_work(inputs, teacher, run.folder)
    if work.cache is not None:
        display.say(f"{experiment.name}: {describe_cache(work.cache)}")
    if experiment.scaling.workers == 0:
        device = device_of(experiment.scaling)
        if experiment.scaling.cpus_per_worker != "auto":
            torch.set_num_threads(experiment.scaling.cpus_per_worker)
        return run_work(work, shared, ProcessReporter(Journal(run.folder), device=device))

    from orchestrator.ray_session import cluster_resources
    from orchestrator.ray_train import train_on_ray

    if joins_cluster():
        resources = cluster_resources(experiment.scaling, say=display.say)
    else:
        resources = local_resources(experiment.scaling)
    return train_on_ray(work, shared, resources)


def device_of(scaling: ScalingSpec) -> torch.device:
    """Where a run in this process computes."""
    use_gpu = scaling.gpus_per_worker != 0 and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def _fingerprints(inputs: Inputs) -> dict[str, str]:
    """What a run's numbers depend on besides its spec."""
    found = {"images": inputs.dataset.fingerprint}
    if inputs.teacher is not None:
        found["teacher's weights"] = inputs.teacher.lineage["teacher.sha256"]
    return found


def _check_same_inputs(folder: Folder, inputs: Inputs) -> None:
    before = folder.read_json("inputs.json") or {}
    for what, now in _fingerprints(inputs).items():
        if before.get(what, now) != now:
            raise UserError(
                f"run {inputs.experiment.name!r} was started on other {what} (fingerprint "
                f"{before[what]}, now {now}): put back what was there, or use --new"
            )

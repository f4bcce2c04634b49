"""What the trials of a group run on: the cluster's room, shared images and teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import ray
import torch
from ray import ObjectRef
from ray.exceptions import RayError

from orchestrator.distillation import build_work, check_cluster, ready_teacher
from orchestrator.error_text import cause
from orchestrator.errors import RunFailed, UserError
from orchestrator.inputs import Inputs, Teacher
from orchestrator.places import CachePlace, Places, describe_cache
from orchestrator.progress import Display
from orchestrator.ray_session import cluster_resources, live_nodes
from orchestrator.reporter import Ranks
from orchestrator.resources import (
    WorkerResources,
    describe_need,
    describe_nodes,
    joins_cluster,
    per_trial,
)
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.teacher_work import measure_teacher
from orchestrator.trials.engine import Setup
from orchestrator.trials.trial import SharedInputs
from orchestrator.work import Shared, Work


class Prepared(NamedTuple):
    """What a session of trials runs on, and the teachers it uses."""

    setup: Setup
    teachers: Mapping[str, Teacher | None]
    """By the key of the inputs."""
    at_once: int
    """How many trials fit at once on the cluster as it is."""


def one_process(experiment: Experiment) -> Experiment:
    """The experiment for Tune: with 0 workers, which means no Ray, a trial has its own process."""
    if experiment.scaling.workers > 0:
        return experiment
    scaling = experiment.scaling.model_copy(update={"workers": 1})
    return experiment.model_copy(update={"scaling": scaling})


def prepare(
    inputs: Mapping[str, Inputs],
    places: Places,
    *,
    group: Folder,
    num_trials: int,
    metric: str,
    display: Display,
) -> Prepared:
    """Train the teachers that are to be trained, put what is shared into Ray's object store.

    Args:
        inputs: by the key under which trials know them; their scaling is the same.
        places: where things are.
        group: the group's folder.
        num_trials: how many trials there are to run.
        metric: validation metric that they are judged by.
        display: where progress is shown.

    Raises:
        UserError: a teacher is no better than chance, or the storage is not shared.
        RunFailed: the cluster does not grow to what one trial needs.
    """
    scaling = next(iter(inputs.values())).experiment.scaling
    check_cluster(scaling, places)
    teachers = {key: ready_teacher(one, places, display=display) for key, one in inputs.items()}
    if joins_cluster():
        cluster_resources(scaling, say=display.say)
    found = per_trial(scaling, live_nodes(), num_trials)
    if found is None:
        raise UserError(f"{describe_need(scaling)}, but Ray has {describe_nodes(live_nodes())}")
    resources, at_once = found
    shared: dict[str, SharedInputs] = {}
    caches: set[CachePlace] = set()
    stored: dict[object, ObjectRef] = {}
    for key, one in inputs.items():
        work, parts = build_work(one, teachers[key], group, one_of_many=True)
        if work.cache is not None and work.cache not in caches:
            display.say(f"{group.location.rsplit('/', 1)[-1]}: {describe_cache(work.cache)}")
            caches.add(work.cache)
        refs = [_once(stored, part) for part in parts]
        scores = _teacher_scores(work, refs, resources)
        shared[key] = SharedInputs(work._replace(teacher_scores=scores, uses_test=False), refs)
    setup = Setup(
        folder=group / "trials",
        work=group,
        inputs=shared,
        scaling=scaling,
        resources=resources,
        metric=metric,
    )
    return Prepared(setup, teachers, at_once)


def seeing_the_test_split(setup: Setup) -> Setup:
    """The same for runs that nothing is chosen by."""
    inputs = {
        key: one._replace(work=one.work._replace(uses_test=True))
        for key, one in setup.inputs.items()
    }
    return setup._replace(inputs=inputs)


def _once(stored: dict[object, ObjectRef], part: object) -> ObjectRef:
    """One copy of equal images, however many arms of a comparison have read them."""
    key = getattr(part, "fingerprint", id(part))
    if key not in stored:
        stored[key] = ray.put(part)
    return stored[key]


def _teacher_scores(
    work: Work, shared: list[ObjectRef], resources: WorkerResources
) -> dict[str, float]:
    """The teacher on the validation images, once for all trials.

    Raises:
        UserError: it is no better than chance.
    """
    task = ray.remote(_measure).options(
        num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=2
    )
    try:
        scores, message = ray.get(task.remote(work, shared, resources))
    except RayError as error:
        raise RunFailed(f"the teacher could not be scored: {cause(error)}") from error
    if message is not None:
        raise UserError(message)
    found: dict[str, float] = scores
    return found


def _measure(
    work: Work, shared: list[ObjectRef], resources: WorkerResources
) -> tuple[dict[str, float], str | None]:
    torch.set_num_threads(resources.cpus)
    use_gpu = resources.gpus > 0 and torch.cuda.is_available()
    ranks = Ranks(device=torch.device("cuda" if use_gpu else "cpu"))
    try:
        return measure_teacher(work, Shared(*ray.get(shared)), ranks), None
    except UserError as error:
        return {}, str(error)

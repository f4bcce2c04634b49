"""What each worker asks for, and whether the machines at hand have it. Knows nothing of Ray."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

from orchestrator.errors import UserError
from orchestrator.spec import ScalingSpec

_UNITS = 10_000
"""Ray counts in parts of 0.0001: of 0.3333 GPU there are three to a GPU, of 0.3334 only two."""


class Node(NamedTuple):
    """One machine."""

    cpus: int
    gpus: float


class WorkerResources(NamedTuple):
    """What each worker asks for."""

    cpus: int
    gpus: float


def joins_cluster() -> bool:
    """Whether a running cluster is used: the one that RAY_ADDRESS names."""
    return bool(os.environ.get("RAY_ADDRESS"))


def this_machine() -> Node:
    """What this process may use here."""
    return Node(_cpu_count(), torch.cuda.device_count())


def local_resources(scaling: ScalingSpec) -> WorkerResources:
    """Resources per worker on this machine alone.

    Raises:
        UserError: the machine does not have them.
    """
    nodes = [this_machine()]
    resources = per_worker(scaling, nodes)
    if resources is None:
        raise UserError(f"{describe_need(scaling)}, but this machine has {describe_nodes(nodes)}")
    return resources


def per_worker(scaling: ScalingSpec, nodes: Sequence[Node]) -> WorkerResources | None:
    """The most that each worker can have such that all of them fit; None when they cannot.

    With `gpus_per_worker: auto`, each has one GPU where any machine has one.
    """
    gpus = scaling.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0
    if scaling.cpus_per_worker == "auto":
        share = max(1, sum(node.cpus for node in nodes) // scaling.workers)
        candidates = list(range(share, 0, -1))
    else:
        candidates = [scaling.cpus_per_worker]
    for cpus in candidates:
        resources = WorkerResources(cpus, float(gpus))
        if _places(nodes, resources) >= scaling.workers:
            return resources
    return None


def capacity(scaling: ScalingSpec, nodes: Sequence[Node], resources: WorkerResources) -> int:
    """How many trials of so many workers, each with these resources, the nodes have room for.

    The workers of a trial may be spread over nodes; several may share a GPU.
    """
    return _places(nodes, resources) // max(1, scaling.workers)


def per_trial(
    scaling: ScalingSpec, nodes: Sequence[Node], num_trials: int
) -> tuple[WorkerResources, int] | None:
    """Resources of each worker of a trial, and how many trials fit at once.

    With `cpus_per_worker: auto`, the cores are shared by as many trials as are wanted at most: one
    core is used better by a trial of its own than by speeding up another. With GPUs, the number of
    trials is theirs to limit, and the cores are shared by those. None when not even one trial fits.
    """
    workers = max(1, scaling.workers)
    one = per_worker(scaling.model_copy(update={"workers": workers}), nodes)
    if one is None:
        return None
    if scaling.cpus_per_worker != "auto":
        candidates = [scaling.cpus_per_worker]
    else:
        candidates = list(range(1, one.cpus + 1))
    best = WorkerResources(candidates[0], one.gpus)
    wanted = min(num_trials, capacity(scaling, nodes, best))
    for cpus in candidates:
        if capacity(scaling, nodes, WorkerResources(cpus, one.gpus)) >= wanted:
            best = WorkerResources(cpus, one.gpus)
    return best, capacity(scaling, nodes, best)


def trial_resources(scaling: ScalingSpec, resources: WorkerResources) -> dict[str, float]:
    """What Ray sets aside for the process of one trial.

    A trial of several workers only waits for them: it must not hold a core that they need, or many
    trials would wait for each other for ever. Ray refuses to place what asks for nothing; a byte of
    memory every node has.
    """
    if scaling.workers > 1:
        return {"CPU": 0, "memory": 1}
    gpus = {"GPU": resources.gpus} if resources.gpus else {}
    return {"CPU": float(resources.cpus)} | gpus


def describe_need(scaling: ScalingSpec) -> str:
    """What is asked for, as the beginning of a sentence."""
    cpus = 1 if scaling.cpus_per_worker == "auto" else scaling.cpus_per_worker
    gpus = 0 if scaling.gpus_per_worker == "auto" else scaling.gpus_per_worker
    text = f"scaling.workers: {scaling.workers} workers of {cpus} CPU"
    return text + (f" and {gpus:g} GPU are needed" if gpus else " are needed")


def describe_nodes(nodes: Sequence[Node]) -> str:
    """What there is."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return f"{cpus} CPU and {gpus:g} GPU" + (f" on {len(nodes)} nodes" if len(nodes) > 1 else "")


def _places(nodes: Sequence[Node], resources: WorkerResources) -> int:
    """How many workers the nodes have room for."""
    cpus, gpus = resources
    return sum(min(node.cpus // cpus, _gpu_places(node, gpus)) for node in nodes)


def _gpu_places(node: Node, gpus: float) -> int:
    """How many workers the GPUs of a node suffice for; a share is always one of a single GPU."""
    if gpus == 0:
        return node.cpus
    if gpus >= 1:
        return math.floor(node.gpus / gpus)
    share = max(1, round(gpus * _UNITS))
    whole, rest = divmod(round(node.gpus * _UNITS), _UNITS)
    return whole * (_UNITS // share) + rest // share


def _cpu_count() -> int:
    """Cores that this process may use; not all systems tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

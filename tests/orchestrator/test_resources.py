"""How many CPUs and GPUs each worker gets, on machines that are only described."""

from __future__ import annotations

import pytest

from orchestrator.resources import (
    Node,
    WorkerResources,
    capacity,
    per_trial,
    per_worker,
    trial_resources,
)
from orchestrator.spec import ScalingSpec


@pytest.mark.parametrize(
    ("scaling", "nodes", "expected"),
    [
        ({"workers": 1}, [Node(2, 0)], WorkerResources(2, 0)),
        ({"workers": 2}, [Node(2, 0)], WorkerResources(1, 0)),
        ({"workers": 3}, [Node(2, 0)], None),
        ({"workers": 2}, [Node(7, 0)], WorkerResources(3, 0)),
        # Three CPUs and five cannot give four to each of two workers.
        ({"workers": 2}, [Node(3, 0), Node(5, 0)], WorkerResources(3, 0)),
        ({"workers": 4}, [Node(8, 2), Node(8, 2)], WorkerResources(4, 1)),
        ({"workers": 5}, [Node(8, 2), Node(8, 2)], None),
        ({"workers": 5, "gpus_per_worker": 0}, [Node(8, 2), Node(8, 2)], WorkerResources(2, 0)),
        ({"workers": 4, "gpus_per_worker": 0.25}, [Node(8, 1)], WorkerResources(2, 0.25)),
        ({"workers": 5, "gpus_per_worker": 0.25}, [Node(8, 1)], None),
        ({"workers": 3, "gpus_per_worker": 0.3333}, [Node(6, 1)], WorkerResources(2, 0.3333)),
        # Three times 0.3334 is more than one, and Ray would never place the third.
        ({"workers": 3, "gpus_per_worker": 0.3334}, [Node(6, 1)], None),
        # Five shares of 0.4 are two GPUs, but a share is of one GPU: two on each.
        ({"workers": 4, "gpus_per_worker": 0.4}, [Node(8, 2)], WorkerResources(2, 0.4)),
        ({"workers": 5, "gpus_per_worker": 0.4}, [Node(8, 2)], None),
        ({"workers": 1, "gpus_per_worker": 1.0}, [Node(8, 0)], None),
        ({"workers": 2, "cpus_per_worker": 4}, [Node(8, 0)], WorkerResources(4, 0)),
        ({"workers": 2, "cpus_per_worker": 5}, [Node(8, 0)], None),
        # A head that takes no work does not count.
        ({"workers": 2}, [Node(0, 0), Node(8, 1), Node(8, 1)], WorkerResources(8, 1)),
    ],
)
def test_workers_get_the_most_that_fits(
    scaling: dict[str, object], nodes: list[Node], expected: WorkerResources | None
) -> None:
    assert per_worker(ScalingSpec.model_validate(scaling), nodes) == expected


@pytest.mark.parametrize(
    ("scaling", "nodes", "resources", "expected"),
    [
        ({"workers": 1}, [Node(2, 0)], WorkerResources(1, 0), 2),
        ({"workers": 0}, [Node(2, 0)], WorkerResources(1, 0), 2),
        ({"workers": 2}, [Node(2, 0)], WorkerResources(1, 0), 1),
        ({"workers": 3}, [Node(2, 0)], WorkerResources(1, 0), 0),
        # Only whole groups count, and the workers of one may be on several nodes.
        ({"workers": 2}, [Node(3, 0), Node(3, 0)], WorkerResources(1, 0), 3),
        ({"workers": 2}, [Node(3, 0), Node(3, 0)], WorkerResources(2, 0), 1),
        # Four shares of each of two GPUs, with cores for all of them or for three.
        ({"workers": 1}, [Node(8, 2)], WorkerResources(1, 0.25), 8),
        ({"workers": 1}, [Node(3, 2)], WorkerResources(1, 0.25), 3),
        ({"workers": 1}, [Node(64, 2)], WorkerResources(1, 0.6), 2),
        ({"workers": 1}, [Node(64, 8)], WorkerResources(1, 2), 4),
        # 8 groups of 4 on 32 GPUs, and nothing on the nodes that have none.
        ({"workers": 4}, [Node(8, 1)] * 32 + [Node(64, 0)] * 32, WorkerResources(8, 1), 8),
        ({"workers": 4}, [Node(16, 0)] * 64, WorkerResources(2, 0), 128),
        ({"workers": 1}, [], WorkerResources(1, 0), 0),
    ],
)
def test_trials_fit_with_all_their_workers_or_not_at_all(
    scaling: dict[str, object], nodes: list[Node], resources: WorkerResources, expected: int
) -> None:
    assert capacity(ScalingSpec.model_validate(scaling), nodes, resources) == expected


@pytest.mark.parametrize(
    ("scaling", "nodes", "num_trials", "expected"),
    [
        # A core each while there are trials for all cores, more when there are fewer.
        ({}, [Node(8, 0)], 100, (WorkerResources(1, 0), 8)),
        ({}, [Node(8, 0)], 4, (WorkerResources(2, 0), 4)),
        ({}, [Node(8, 0)], 3, (WorkerResources(2, 0), 4)),
        ({}, [Node(8, 0)], 1, (WorkerResources(8, 0), 1)),
        ({"workers": 2}, [Node(2, 0)], 16, (WorkerResources(1, 0), 1)),
        ({"workers": 2}, [Node(8, 0)], 2, (WorkerResources(2, 0), 2)),
        ({"workers": 3}, [Node(2, 0)], 16, None),
        # As many trials as GPUs, which share the cores.
        ({}, [Node(16, 4)], 100, (WorkerResources(4, 1), 4)),
        ({"gpus_per_worker": 0.25}, [Node(16, 1)], 100, (WorkerResources(4, 0.25), 4)),
        ({"gpus_per_worker": 0.25}, [Node(16, 1)], 2, (WorkerResources(8, 0.25), 2)),
        ({"gpus_per_worker": 1.0}, [Node(16, 0)], 4, None),
        # Without the GPU the cores of all nodes count.
        ({"gpus_per_worker": 0}, [Node(16, 4)], 100, (WorkerResources(1, 0), 16)),
        ({"cpus_per_worker": 3}, [Node(8, 0)], 1, (WorkerResources(3, 0), 2)),
        ({"cpus_per_worker": 9}, [Node(8, 0)], 1, None),
        # The smaller node decides how many cores each of ten trials can have: 2 + 8 places of one.
        ({}, [Node(2, 0), Node(8, 0)], 10, (WorkerResources(1, 0), 10)),
        ({}, [Node(2, 0), Node(8, 0)], 5, (WorkerResources(2, 0), 5)),
        ({}, [Node(2, 0), Node(8, 0)], 2, (WorkerResources(4, 0), 2)),
        ({}, [Node(16, 0)] * 64, 1000, (WorkerResources(1, 0), 1024)),
        ({}, [Node(16, 0)] * 64, 64, (WorkerResources(16, 0), 64)),
        ({"workers": 4}, [Node(0, 0)] + [Node(8, 1)] * 64, 1000, (WorkerResources(8, 1), 16)),
    ],
)
def test_trials_share_the_cores_among_as_many_as_run_at_once(
    scaling: dict[str, object],
    nodes: list[Node],
    num_trials: int,
    expected: tuple[WorkerResources, int] | None,
) -> None:
    assert per_trial(ScalingSpec.model_validate(scaling), nodes, num_trials) == expected


def test_the_process_of_a_trial_with_several_workers_takes_no_core_from_them() -> None:
    resources = WorkerResources(2, 0.5)
    assert trial_resources(ScalingSpec(workers=1), resources) == {"CPU": 2, "GPU": 0.5}
    assert trial_resources(ScalingSpec(workers=1), WorkerResources(2, 0)) == {"CPU": 2}
    several = trial_resources(ScalingSpec(workers=2), resources)
    assert several["CPU"] == 0
    assert "GPU" not in several
    # Ray places nothing that asks for nothing.
    assert sum(several.values()) > 0

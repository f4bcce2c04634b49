"""How many CPUs and GPUs each worker gets, on machines that are only described."""

from __future__ import annotations

import pytest

from orchestrator.resources import Node, WorkerResources, per_worker
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
        ({"workers": 3, "gpus_per_worker": 0.3334}, [Node(6, 1)], WorkerResources(2, 0.3334)),
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

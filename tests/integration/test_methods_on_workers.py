"""Methods beside DCD with several Ray Train workers: the numbers of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import digits
import pytest

from orchestrator.distillation import distill
from orchestrator.experiment_file import build_experiment

pytestmark = [pytest.mark.ray, pytest.mark.slow, *digits.RAY_WARNINGS]


def _train(teacher: Path, name: str, updates: dict[str, Any]) -> dict[int, dict[str, float]]:
    spec = build_experiment(digits.experiment(teacher, {"name": name, **updates}), where="test")
    path = distill(spec).folder.local_path
    assert path is not None
    return digits.epochs(path)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("method", ["rkd", "crd+kd", "at"])
def test_two_workers_give_the_losses_of_one_process(
    workplace: Path, teacher: Path, method: str
) -> None:
    updates = {"objective.method": method, "optimizer.lr": 0.001, "train.epochs": 2}
    alone = _train(teacher, "alone", {"scaling.workers": 0, **updates})
    shared = _train(teacher, "shared", {"scaling.workers": 2, **updates})
    term = f"train/{method.removesuffix('+kd')}"
    assert alone[2][term] != alone[1][term]
    for epoch, metrics in alone.items():
        assert shared[epoch].keys() == metrics.keys()
        # Later, ReLUs whose input is a rounding error on either side of 0 differ.
        names = metrics if epoch < 2 else [n for n in metrics if n.startswith("train/")]
        tolerance = 1e-5 if epoch < 2 else 1e-3
        for name in names:
            value = metrics[name]
            assert shared[epoch][name] == pytest.approx(value, rel=tolerance, abs=1e-5), (
                epoch,
                name,
            )

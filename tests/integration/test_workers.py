"""Ray Train with several workers: the same numbers as one process, and through the loss of one."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import digits
import numpy as np
import pytest
import torch
from torch import nn

from orchestrator import load_student
from orchestrator.data import load_dataset
from orchestrator.distillation import distill
from orchestrator.errors import Diverged, RunFailed, UserError
from orchestrator.experiment_file import build_experiment

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    *digits.RAY_WARNINGS,
]


def train(teacher: Path, name: str, updates: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Run an experiment; its metrics by epoch."""
    spec = build_experiment(digits.experiment(teacher, {"name": name, **updates}), where="test")
    outcome = distill(spec)
    path = outcome.folder.local_path
    assert path is not None
    return digits.epochs(path)


@pytest.mark.usefixtures("cluster")
def test_one_two_and_four_workers_give_the_losses_of_one_process(
    workplace: Path, teacher: Path
) -> None:
    # Two epochs: later, ReLUs whose input is a rounding error on either side of 0 begin to differ,
    # as they do between one thread and two.
    short = {"optimizer.lr": 0.005, "train.epochs": 2}
    alone = train(teacher, "alone", {"scaling.workers": 0, **short})
    assert sorted(alone) == [0, 1, 2]
    for workers, tolerance in ((1, 0.0), (2, 1e-5), (4, 1e-5)):
        shared = train(
            teacher,
            f"workers-{workers}",
            {"scaling.workers": workers, **short},
        )
        for epoch, metrics in alone.items():
            assert set(shared[epoch]) == set(metrics)
            for name, value in metrics.items():
                # Validation accuracy moves in steps of one image, so it may not differ at all.
                assert shared[epoch][name] == pytest.approx(value, rel=tolerance, abs=tolerance), (
                    workers,
                    epoch,
                    name,
                )


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_replaced_and_no_number_changes(workplace: Path, teacher: Path) -> None:
    two = {"scaling.workers": 2, "train.epochs": 40}
    undisturbed = train(teacher, "undisturbed", two)
    killed: list[bool] = []

    def kill_one() -> None:
        folder = workplace / "dcd_runs" / "disturbed"
        digits.wait_until(lambda: 2 in digits.epochs(folder), what="second epoch")
        os.kill(digits.train_workers()[-1].pid, signal.SIGKILL)
        killed.append(True)

    thread = threading.Thread(target=kill_one)
    thread.start()
    disturbed = train(teacher, "disturbed", two)
    thread.join()
    assert killed
    assert disturbed == undisturbed
    folder = workplace / "dcd_runs" / "disturbed"
    names = {p.name for p in digits.points(folder)}
    assert "faults/restarts" in names
    assert "faults/restarts" not in {
        p.name for p in digits.points(workplace / "dcd_runs" / "undisturbed")
    }


@pytest.mark.usefixtures("cluster")
def test_a_run_fails_when_more_workers_are_lost_than_it_may_replace(
    workplace: Path, teacher: Path
) -> None:
    def kill_one() -> None:
        folder = workplace / "dcd_runs" / "fragile"
        digits.wait_until(lambda: 1 in digits.epochs(folder), what="first epoch")
        os.kill(digits.train_workers()[-1].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    updates = {"scaling.workers": 1, "scaling.max_failures": 0, "train.epochs": 500}
    with pytest.raises(RunFailed, match="worker 0 failed"):
        train(teacher, "fragile", updates)
    thread.join()
    assert list((workplace / "dcd_runs" / "fragile" / "checkpoints").glob("*.json"))


@pytest.mark.usefixtures("cluster")
def test_a_diverging_loss_ends_the_run_with_its_epoch_step_and_term(
    workplace: Path, teacher: Path
) -> None:
    with pytest.raises(Diverged, match=r"ce was not finite in epoch 1, step \d+"):
        train(teacher, "diverging", {"scaling.workers": 1, "optimizer.lr": 1e30})
    assert not (workplace / "dcd_runs" / "diverging" / "checkpoints").exists()


@pytest.mark.usefixtures("cluster")
def test_a_teacher_at_chance_level_stops_the_run(workplace: Path, teacher: Path) -> None:
    with pytest.raises(UserError, match=r"validation top-1 .* below chance .*teacher\.normalize"):
        train(teacher, "chance", {"scaling.workers": 1, "teacher.min_top1": None})


@pytest.mark.usefixtures("cluster")
def test_a_cluster_that_stays_too_small_is_given_up_after_the_wait(
    workplace: Path, teacher: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(RunFailed, match=r"after 1 s the cluster still has 4 CPU.*5 workers"):
        train(teacher, "large", {"scaling.workers": 5, "train.batch_size": 20, "scaling.wait_s": 1})
    assert time.monotonic() - started >= 1


@pytest.mark.usefixtures("cluster")
def test_local_statistics_are_scored_as_they_are_saved(workplace: Path, teacher: Path) -> None:
    updates = {"scaling.workers": 2, "scaling.batch_norm": "local", "train.epochs": 2}
    spec = build_experiment(
        digits.experiment(teacher, {"name": "local", "data.val_fraction": 0.4, **updates}),
        where="test",
    )
    outcome = distill(spec)
    dataset = load_dataset(spec.data)
    network = load_student(outcome.folder.location, with_normalization=True)
    with torch.no_grad():
        logits = network(torch.from_numpy(np.array(dataset.val.images)))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(np.array(dataset.val.labels)))
    path = outcome.folder.local_path
    assert path is not None
    best = int(outcome.metrics["best_epoch"])
    assert float(loss) == pytest.approx(digits.epochs(path)[best]["val/loss"], rel=1e-5)


@pytest.mark.usefixtures("cluster")
def test_a_default_folder_is_refused_where_other_nodes_would_not_see_it(
    workplace: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    one = ray.nodes()
    # A second machine, as far as Ray's list goes; a real one would not share this disk.
    monkeypatch.setattr(ray, "nodes", lambda: [*one, *one])
    with pytest.raises(UserError, match=r"storage\.path: not set, and the cluster has 2 nodes"):
        train(teacher, "spread", {"scaling.workers": 1})
    assert not (workplace / "dcd_runs" / "spread" / "spec.json").exists()
    path = str(workplace / "shared")
    assert train(teacher, "spread", {"scaling.workers": 1, "storage.path": path})

"""Where students come from: the chain of their teachers, and weights that they start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_networks
import torch
from tiny_experiment import recorded, run_quietly, tiny_experiment

from orchestrator.distillation import build_work
from orchestrator.inputs import read_inputs
from orchestrator.journal import Journal
from orchestrator.lineage import Chain, chain_of
from orchestrator.reporter import ProcessReporter
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.student_model import read_package
from orchestrator.worker import run_work

CPU = torch.device("cpu")


def test_a_chain_grows_by_each_teacher_and_keeps_its_root() -> None:
    first = Chain().followed_by("resnet56", run_id=None, origin="big.pth")
    assert first.tags() == {
        "lineage.depth": "1",
        "lineage.teachers": "resnet56",
        "lineage.root": "resnet56 from big.pth",
    }
    second = first.followed_by("resnet20", run_id="aa", origin="mlflow:runs:/aa")
    third = second.followed_by("resnet14", run_id="bb", origin="mlflow:models:/x@champion")
    assert third.tags() == {
        "lineage.depth": "3",
        "lineage.teachers": "resnet56 > resnet20 > resnet14",
        "lineage.root": "resnet56 from big.pth",
        "lineage.runs": "aa,bb",
    }
    for chain in (Chain(), first, second, third):
        assert chain_of(chain.tags()) == chain
    assert Chain().tags() == {"lineage.depth": "0"}


def _distilled(teacher_file: Path, name: str, **section: Any) -> Folder:
    """A run whose teacher is this section."""
    teacher = {"teacher": {"min_top1": 0, **section}} if section else {}
    return run_quietly(tiny_experiment(teacher_file, {"name": name, **teacher})).folder


def _lineage(run: Folder) -> dict[str, str]:
    tags = read_package(run.location).lineage
    return {key: tags[key] for key in tags if key.startswith("lineage.")}


def test_runs_that_are_in_no_mlflow_have_a_chain_too(workplace: Path, teacher_file: Path) -> None:
    first = _distilled(teacher_file, "first")
    second = _distilled(teacher_file, "second", source=f"mlflow:{first.location}")
    third = _distilled(teacher_file, "third", source="mlflow:dcd_runs/second")
    network = "tiny_networks:network"
    assert _lineage(first) == {
        "lineage.depth": "1",
        "lineage.teachers": network,
        "lineage.root": f"{network} from {teacher_file}",
    }
    assert _lineage(third) == {
        "lineage.depth": "3",
        "lineage.teachers": " > ".join([network] * 3),
        "lineage.root": f"{network} from {teacher_file}",
    }
    tags = read_package(third.location).lineage
    assert tags["teacher.origin"] == "mlflow:dcd_runs/second"
    assert read_package(second.location).lineage["teacher.sha256"] != tags["teacher.sha256"]


def test_a_teacher_that_was_trained_first_is_the_root(workplace: Path, teacher_file: Path) -> None:
    fit = {"epochs": 1, "batch_size": 20}
    run = _distilled(teacher_file, "fitted", source="tiny_networks:network", fit=fit)
    teacher = read_package(run.location).lineage["teacher.run"]
    assert _lineage(run) == {
        "lineage.depth": "1",
        "lineage.teachers": "tiny_networks:network",
        "lineage.root": f"tiny_networks:network from run {teacher}",
    }
    assert _lineage(Folder(f"dcd_runs/{teacher}")) == {"lineage.depth": "0"}


def _trial(inputs: Any, experiment: Experiment, folder: Path) -> dict[tuple[str, int], float]:
    """What a trial records that is told of these inputs and has this experiment."""
    work, shared = build_work(inputs, inputs.teacher, Folder(str(folder)))
    work = work._replace(experiment=experiment)
    run_work(work, shared, ProcessReporter(Journal(work.run), device=CPU))
    return recorded(work.run)


def test_trials_start_from_weights_that_the_driver_alone_has_read(
    workplace: Path, teacher_file: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    weights = tmp_path / "start.pt"
    torch.save(tiny_networks.network(10).state_dict(), weights)
    given = tiny_experiment(teacher_file, {"student.checkpoint": str(weights)})
    expected = recorded(run_quietly(given).folder)
    inputs = read_inputs(given)
    weights.unlink()

    assert _trial(inputs, given, tmp_path / "same") == expected

    other = {"student": {"source": "tiny_networks:relu_network"}, "name": "other"}
    at_random = tiny_experiment(teacher_file, other)
    expected = recorded(run_quietly(at_random).folder)
    assert _trial(inputs, at_random, tmp_path / "other") == expected

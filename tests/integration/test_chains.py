"""A student becomes the next teacher, over three distillations, and MLflow tells the chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import digits
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow_server import MlflowServer

from orchestrator.distillation import Outcome, distill
from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment

pytestmark = pytest.mark.mlflow


class Links(NamedTuple):
    """Three distillations in MLflow, and the teacher that they began with."""

    runs: list[Run]
    root: Path


def _distil(server: MlflowServer, checkpoint: Path, name: str, **updates: Any) -> Outcome:
    values = digits.experiment(checkpoint, updates)
    values |= {
        "name": name,
        "tracking": {"uri": server.uri, "experiment": "chain", "register": "small"},
    }
    values["train"]["epochs"] = 1
    values["scaling"] = {"workers": 0}
    outcome = distill(build_experiment(values, where="test"))
    assert outcome.tracking is not None and outcome.tracking.pending is None
    return outcome


@pytest.fixture(scope="module")
def chain(server: MlflowServer, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Links:
    """resnet14 from a file > resnet14 > resnet8, from the registry > resnet8, by its run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("chain"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("DCD_HOME", raising=False)
        client = MlflowClient(server.uri)
        first = _distil(server, teacher, "first", student={"source": "resnet14"})
        assert client.get_model_version_by_alias("small", "champion").version == "1"
        champion = {"source": "mlflow:models:/small@champion", "min_top1": 0}
        second = _distil(server, teacher, "second", teacher=champion)
        by_run = {"source": f"mlflow:runs:/{second.tracking.run_id}", "min_top1": 0}
        third = _distil(server, teacher, "third", teacher=by_run)
        ids = [outcome.tracking.run_id for outcome in (first, second, third)]
        return Links([client.get_run(run_id) for run_id in ids], teacher)


def _lineage(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.startswith("lineage.")}


def _model(server: MlflowServer, run: Run) -> LoggedModel:
    """The student of a run."""
    [output] = run.outputs.model_outputs
    return MlflowClient(server.uri).get_logged_model(output.model_id)


def test_each_run_tells_its_whole_chain(server: MlflowServer, chain: Links) -> None:
    ids = [run.info.run_id for run in chain.runs]
    expected = [
        {"lineage.depth": "1", "lineage.teachers": "resnet14"},
        {"lineage.depth": "2", "lineage.teachers": "resnet14 > resnet14", "lineage.runs": ids[0]},
        {
            "lineage.depth": "3",
            "lineage.teachers": "resnet14 > resnet14 > resnet8",
            "lineage.runs": f"{ids[0]},{ids[1]}",
        },
    ]
    for run, tags in zip(chain.runs, expected, strict=True):
        tags["lineage.root"] = f"resnet14 from {chain.root}"
        assert _lineage(run.data.tags) == tags
    note = chain.runs[2].data.tags["mlflow.note.content"]
    assert "distillation 3 of the chain resnet14 → resnet14 → resnet8 → resnet8" in note


def test_each_run_names_its_teachers_run_and_model(server: MlflowServer, chain: Links) -> None:
    first, second, third = chain.runs
    assert first.data.tags["teacher.origin"] == str(chain.root)
    assert "teacher.run_id" not in first.data.tags
    assert second.data.tags["teacher.origin"] == "mlflow:models:/small@champion"
    for run, before in ((second, first), (third, second)):
        model = _model(server, before)
        assert run.data.tags["teacher.run_id"] == before.info.run_id
        assert run.data.tags["teacher.model"] == f"models:/{model.model_id}"
        # The page of the run shows it as what goes in, beside the student that comes out.
        assert [taught_by.model_id for taught_by in run.inputs.model_inputs] == [model.model_id]


def test_models_and_their_registered_versions_tell_the_chain_too(
    server: MlflowServer, chain: Links
) -> None:
    client = MlflowClient(server.uri)
    for number, run in enumerate(chain.runs, 1):
        version = client.get_model_version("small", str(number))
        assert version.run_id == run.info.run_id
        for tags in (version.tags, _model(server, run).tags):
            assert _lineage(tags) == _lineage(run.data.tags)
            for key in ("teacher.source", "teacher.sha256", "teacher.run_id"):
                assert tags.get(key) == run.data.tags.get(key)


def test_all_descendants_of_a_run_are_found_by_one_search(
    server: MlflowServer, chain: Links
) -> None:
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("chain")
    first, second, third = (run.info.run_id for run in chain.runs)
    for ancestor, descendants in ((first, {second, third}), (second, {third}), (third, set())):
        found = client.search_runs(
            [experiment.experiment_id], f"tags.`lineage.runs` LIKE '%{ancestor}%'"
        )
        assert {run.info.run_id for run in found} == descendants


def test_a_run_without_a_student_is_no_teacher(
    server: MlflowServer, teacher: Path, workplace: Path
) -> None:
    client = MlflowClient(server.uri)
    empty = client.create_run(client.create_experiment("empty")).info.run_id
    section = {"source": f"mlflow:runs:/{empty}", "min_top1": 0}
    with pytest.raises(UserError, match=f"runs:/{empty}.* brings no rebuildable network"):
        _distil(server, teacher, "none", teacher=section)

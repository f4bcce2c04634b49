"""`dcd evaluate` and `dcd transfer` as a user types them, with MLflow, stopped, and sent later."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import digits
import pytest
import torch
from digit_folder import save_digits
from mlflow import MlflowClient
from mlflow_server import MlflowServer

from orchestrator.built_model import build_classifier, model_tags
from orchestrator.data import load_dataset
from orchestrator.given_images import images_for
from orchestrator.given_model import find_model
from orchestrator.places import find_places
from orchestrator.student_model import read_weights

pytestmark = [pytest.mark.mlflow, pytest.mark.slow]

OPTIONS = ("--data", "imagefolder", "--set", "data.path=photos", "--set", "data.test_fraction=0.3")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """A working directory with a finished run, tracked in a database there, and other images."""
    folder = tmp_path_factory.mktemp("workplace")
    updates = {
        "scaling.workers": 0,
        "train.epochs": 2,
        "tracking.enabled": True,
        "tracking.register": "digit-student",
    }
    spec = digits.write(folder / "run.yaml", digits.experiment(teacher, updates))
    digits.run(folder, "distill", str(spec))
    save_digits(folder / "photos", classes=range(4))
    return folder


def tracked(place: str, role: str) -> list[Any]:
    """Runs of a role, the oldest first."""
    client = MlflowClient(place)
    experiment = client.get_experiment_by_name("dcd")
    assert experiment is not None
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`dcd.role` = '{role}'", order_by=["start_time ASC"]
    )
    return list(found)


def database(workplace: Path) -> str:
    """The default one."""
    return f"sqlite:///{workplace / 'mlflow.db'}"


def test_an_evaluation_is_a_run_of_its_own_that_names_the_students(
    workplace: Path,
) -> None:
    output = digits.run(workplace, "evaluate", "run")
    found = json.loads((workplace / "dcd_runs/run-on-digits-test/evaluation.json").read_text())
    result = json.loads((workplace / "dcd_runs/run/result.json").read_text())
    assert found["model"]["top1"] == pytest.approx(result["test/top1"])
    assert "teacher: resnet14" in output
    (student,) = tracked(database(workplace), "student")
    evaluation, *_ = tracked(database(workplace), "evaluation")
    assert evaluation.info.status == "FINISHED"
    tags = evaluation.data.tags
    assert tags["dcd.student.run_id"] == student.info.run_id
    assert tags["dcd.student.key"] == student.data.tags["dcd.key"]
    assert tags["data.fingerprint"] == student.data.tags["data.fingerprint"]
    metrics = evaluation.data.metrics
    assert metrics["test/top1"] == pytest.approx(student.data.metrics["test/top1"])
    assert metrics["test/ece"] == found["model"]["ece"]
    assert metrics["test/teacher_agreement"] == found["agreement_with_teacher"]["same_top1"]
    assert metrics["student/latency_ms"] == found["model"]["latency"][0]["median_ms"]
    artifacts = {
        item.path
        for item in MlflowClient(database(workplace)).list_artifacts(evaluation.info.run_id)
    }
    assert {"confusion.png", "confusion.parquet", "per_class.parquet", "evaluation.json",
            "reliability.png", "environment.txt", "data.yaml"} == artifacts  # fmt: skip
    (images,) = evaluation.inputs.dataset_inputs
    assert [tag.value for tag in images.tags] == ["evaluation"]
    assert "nothing to send" in digits.run(workplace, "sync")


def test_a_registered_student_is_evaluated_and_transferred_by_its_mlflow_name(
    workplace: Path,
) -> None:
    (student,) = tracked(database(workplace), "student")
    own = json.loads((workplace / "dcd_runs/run/result.json").read_text())["test/top1"]
    for model, name in (
        ("mlflow:models:/digit-student@champion", "digit-student-champion"),
        (f"mlflow:runs:/{student.info.run_id}", f"{student.info.run_id}-student"),
    ):
        digits.run(workplace, "evaluate", model, "--data", "run.yaml")
        folder = workplace / "dcd_runs" / f"{name}-on-digits-test"
        found = json.loads((folder / "evaluation.json").read_text())
        assert found["model"]["top1"] == pytest.approx(own)
    digits.run(workplace, "transfer", "mlflow:models:/digit-student/1", *OPTIONS, "--epochs", "2")
    runs = tracked(database(workplace), "evaluation") + tracked(database(workplace), "transfer")
    linked = [r.data.tags["dcd.student.run_id"] for r in runs if "dcd.student.model" in r.data.tags]
    assert linked == [student.info.run_id] * 3


def test_a_model_stays_the_one_that_its_alias_named_when_it_was_found(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    place = database(workplace)
    (student,) = tracked(place, "student")
    given = find_model("mlflow:models:/digit-student@champion", tracking_uri=place)
    client = MlflowClient(place)
    client.delete_registered_model_alias("digit-student", "champion")
    try:
        images = images_for(given, data="run.yaml")
        classifier = build_classifier(given, images, load_dataset(images.data))
        tags = model_tags(
            given, classifier, places=find_places(images)._replace(tracking_uri=place)
        )
    finally:
        client.set_registered_model_alias("digit-student", "champion", "1")
    assert tags["dcd.student.run_id"] == student.info.run_id
    assert tags["dcd.student.model"].startswith("models:/m-")
    own = read_weights("dcd_runs/run")
    assert all(
        torch.equal(own[key], value) for key, value in classifier.network.state_dict().items()
    )


def test_a_transfer_is_a_run_with_curves_and_the_probe_and_waits_for_a_dead_server(
    workplace: Path, tmp_path: Path
) -> None:
    with MlflowServer(tmp_path / "server") as server:
        server.kill()
        digits.run(
            workplace, "transfer", "run", *OPTIONS, "--epochs", "6", "--seeds", "2",
            MLFLOW_TRACKING_URI=server.uri,
        )  # fmt: skip
        output = (workplace / "output.txt").read_text()
        assert re.search(r"not all is sent yet \(.*\): `dcd sync run-to-photos` sends it", output)
        server.start()
        digits.run(workplace, "sync", "run-to-photos", MLFLOW_TRACKING_URI=server.uri)
        (probe,) = tracked(server.uri, "transfer")
        (student,) = tracked(database(workplace), "student")
        assert probe.data.tags["dcd.student.run_id"] == student.info.run_id
        assert probe.data.params["probe.epochs"] == "6"
        client = MlflowClient(server.uri)
        curve = client.get_metric_history(probe.info.run_id, "val/top1")
        assert sorted(point.step for point in curve) == [1, 2, 3, 4, 5, 6]
        values = json.loads((workplace / "dcd_runs/run-to-photos/transfer.json").read_text())
        mean = sum(score["test_top1"] for score in values["scores"]) / 2
        assert probe.data.metrics["test/top1"] == pytest.approx(mean)
        artifacts = {item.path for item in client.list_artifacts(probe.info.run_id)}
        assert {"probe.json", "probe.safetensors", "transfer.json"} <= artifacts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_transfer_ends_in_order_and_leaves_nothing(
    workplace: Path, number: signal.Signals
) -> None:
    runs = workplace / "dcd_runs"
    before = sorted(path.name for path in runs.iterdir())
    said_before = len((workplace / "output.txt").read_text())

    def said() -> str:
        return (workplace / "output.txt").read_text()[said_before:]

    command = digits.start(workplace, "transfer", "run", *OPTIONS, "--epochs", "1000000")
    digits.wait_until(lambda: "probe 1 of 1" in said(), what="start of a probe")
    command.send_signal(number)
    assert command.wait(30) == 128 + number
    assert "stopped; nothing of what was being measured is kept" in said()
    assert "Traceback" not in said()
    assert sorted(path.name for path in runs.iterdir()) == before

"""Students as packages and as MLflow models, against a real MLflow server and a real database."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import torchvision
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow_server import MlflowServer
from torch import Tensor, nn

from dcd_core import build_model, normalize
from orchestrator.errors import UserError
from orchestrator.journal import Journal
from orchestrator.storage import Folder
from orchestrator.student_model import (
    RawImageClassifier,
    load_student,
    read_package,
    read_weights,
    save_package,
)
from orchestrator.tracking import (
    SyncReport,
    default_tracking_uri,
    finish_request,
    request_tracking,
    sync_run,
)

pytestmark = pytest.mark.mlflow

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SHAPE = (3, 8, 8)


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "run"))


def new_student(seed: int = 0) -> nn.Module:
    """A network whose BatchNorm has seen images, so that train and eval mode differ."""
    torch.manual_seed(seed)
    network = build_model("resnet8", num_classes=4, in_channels=3)
    network.train()
    network(torch.randn(16, *SHAPE))
    return network.eval()


def images(batch: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)


def save(folder: Folder, student: nn.Module, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "state_dict": student.state_dict(),
        "network": {"source": "resnet8", "args": {}, "num_classes": 4, "in_channels": 3},
        "mean": MEAN,
        "std": STD,
        "image_shape": SHAPE,
        "class_names": ["cat", "dog", "frog", "ship"],
        "metrics": {"val/top1": 60.0, "test/top1": 55.0},
        "lineage": {"data.fingerprint": "f00d", "data.split_seed": "0", "teacher": "t"},
    }
    save_package(folder, **(arguments | changes))


def request_and_finish(
    run: Folder,
    uri: str,
    *,
    register: str | None = None,
    artifact_root: str | None = None,
    val_top1: float = 60.0,
) -> None:
    """A finished run of two epochs whose student is in ``student/``."""
    request_tracking(
        run,
        uri=uri,
        experiment="students",
        run_name="digits",
        tags={},
        params={"train.epochs": 2, "long": "x" * 20_000},
        texts={},
        register=register,
        artifact_root=artifact_root,
    )
    Journal(run).append({"val/top1": val_top1, "train/loss": 2.0}, step=1)
    Journal(run).append({"val/top1": 1.0, "train/loss": 1.0}, step=2)
    finish_request(run, status="FINISHED", metrics={"test/top1": 55.0}, tags={}, student=True)


def track(run: Folder, uri: str, **options: Any) -> SyncReport:
    """Request, finish and send."""
    request_and_finish(run, uri, **options)
    return sync_run(run)


def test_the_normalisation_inside_equals_the_one_in_training() -> None:
    network = new_student()
    raw = images(7)
    expected = network(normalize(raw, mean=MEAN, std=STD))
    torch.testing.assert_close(
        RawImageClassifier(network, mean=MEAN, std=STD)(raw), expected, rtol=1e-6, atol=1e-6
    )


def test_the_logits_are_fp32_whatever_the_network_computes_in() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).bfloat16()
    classifier = RawImageClassifier(network, mean=MEAN, std=STD).bfloat16()
    assert classifier(images(2)).dtype == torch.float32


def test_a_package_rebuilds_the_student_from_the_run_or_its_own_folder(run: Folder) -> None:
    network = new_student()
    save(run / "student", network)
    normalised = normalize(images(5), mean=MEAN, std=STD)

    for location in (run.location, (run / "student").location, Path(run.location).as_uri()):
        rebuilt = load_student(location)
        assert not rebuilt.training
        assert torch.equal(rebuilt(normalised), network(normalised))
    raw = load_student(run.location, with_normalization=True)
    torch.testing.assert_close(raw(images(5)), network(normalised), rtol=1e-6, atol=1e-6)


def test_a_package_tells_what_it_is(run: Folder) -> None:
    save(run / "student", new_student())
    package = read_package(run.location)

    assert package.source == "resnet8"
    assert (package.num_classes, package.in_channels) == (4, 3)
    assert (package.mean, package.std, package.image_shape) == (MEAN, STD, SHAPE)
    assert package.class_names == ("cat", "dog", "frog", "ship")
    assert package.metrics == {"val/top1": 60.0, "test/top1": 55.0}
    assert package.lineage["data.fingerprint"] == "f00d"
    assert (run / "student").names() == ["source.json", "weights.safetensors"]


def test_tied_and_strided_weights_survive(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tied_network.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            class Tied(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.a = nn.Linear(192, 192, bias=False)
                    self.b = nn.Linear(192, 192, bias=False)
                    self.b.weight = self.a.weight
                    self.head = nn.Linear(192, 4)

                def forward(self, x):
                    return self.head(self.b(self.a(x.flatten(1)).relu()))

            def tied():
                return Tied()
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    import tied_network

    network = tied_network.tied().eval()
    network.head.weight.data = torch.randn(192, 4).t()  # not contiguous
    save(
        run / "student",
        network,
        network={"source": "tied_network:tied", "args": {}, "num_classes": 4, "in_channels": 3},
    )
    x = torch.randn(2, *SHAPE)

    rebuilt = load_student(run.location)

    # Close and not equal: another memory layout takes another kernel.
    torch.testing.assert_close(rebuilt(x), network(x), rtol=1e-5, atol=1e-5)
    assert rebuilt.a.weight is rebuilt.b.weight


def test_a_place_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no student here"):
        load_student(str(tmp_path))


def test_damaged_weights_are_refused(run: Folder) -> None:
    save(run / "student", new_student())
    content = (run / "student").read("weights.safetensors")
    assert content is not None
    (run / "student").write("weights.safetensors", content[:-1] + b"\x7f")

    with pytest.raises(UserError, match=r"weights\.safetensors is missing or damaged"):
        read_weights(run.location)


@pytest.fixture(scope="module")
def logged(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> SyncReport:
    """A tracked and registered student on the server."""
    run = Folder(str(tmp_path_factory.mktemp("logged") / "run"))
    save(run / "student", new_student())
    report = track(run, server.uri, register="logged")
    assert report.pending is None
    return report


@pytest.fixture
def client(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow's own functions ask the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return MlflowClient(server.uri)


@pytest.mark.parametrize("batch", [1, 2, 7, 300])
def test_a_logged_student_classifies_any_number_of_raw_images_in_both_flavours(
    client: MlflowClient, logged: SyncReport, batch: int
) -> None:
    expected = new_student()(normalize(images(batch), mean=MEAN, std=STD)).detach().numpy()
    assert logged.model_uri is not None

    graph = mlflow.pytorch.load_model(logged.model_uri)
    function = mlflow.pyfunc.load_model("models:/logged@champion")

    np.testing.assert_allclose(
        graph(images(batch)).detach().numpy(), expected, rtol=1e-5, atol=1e-5
    )
    predicted = function.predict(images(batch).numpy())
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, *SHAPE), np.float32),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((2, *SHAPE), np.int64),
    ],
    ids=["float32", "channels last", "int64"],
)
def test_a_logged_student_refuses_anything_but_raw_images(
    client: MlflowClient, logged: SyncReport, wrong: Any
) -> None:
    assert logged.model_uri is not None
    function = mlflow.pyfunc.load_model(logged.model_uri)
    with pytest.raises(MlflowException, match="schema"):
        function.predict(wrong)


def test_a_logged_student_loads_where_pickle_is_forbidden(
    client: MlflowClient, logged: SyncReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    assert logged.model_uri is not None
    assert mlflow.pytorch.load_model(logged.model_uri)(images(3)).shape == (3, 4)


def test_a_logged_student_belongs_to_its_run_and_shows_its_scores(
    client: MlflowClient, logged: SyncReport
) -> None:
    assert logged.model_uri is not None
    assert logged.run_id is not None
    model = client.get_logged_model(logged.model_uri.removeprefix("models:/"))

    assert model.name == "student"
    assert model.source_run_id == logged.run_id
    assert str(model.status) == "READY"
    assert model.params["train.epochs"] == "2"
    assert model.tags["data.fingerprint"] == "f00d"
    assert model.tags["data.split_seed"] == "0"
    scores = {(metric.key, metric.step): metric.value for metric in model.metrics}
    assert scores == {("val/top1", 1): 60.0, ("test/top1", 2): 55.0}
    stored = client.get_run(logged.run_id)
    assert [output.model_id for output in stored.outputs.model_outputs] == [model.model_id]
    # Showing a score at the model is no second point of the run.
    assert [m.step for m in client.get_metric_history(logged.run_id, "val/top1")] == [1, 2]
    requirements = mlflow.artifacts.load_text(f"{model.artifact_location}/requirements.txt")
    for package in (torch, torchvision):
        version = package.__version__.split("+")[0]
        assert f"{package.__name__}=={version}" in requirements.splitlines()


@pytest.mark.parametrize("prefix", ["", "mlflow:"])
@pytest.mark.parametrize("kind", ["alias", "version", "model", "run"])
def test_every_mlflow_location_rebuilds_the_module(
    client: MlflowClient, logged: SyncReport, kind: str, prefix: str
) -> None:
    locations = {
        "alias": "models:/logged@champion",
        "version": "models:/logged/1",
        "model": str(logged.model_uri),
        "run": f"runs:/{logged.run_id}/student",
    }
    location = prefix + locations[kind]
    normalised = normalize(images(5), mean=MEAN, std=STD)

    rebuilt = load_student(location)

    assert torch.equal(rebuilt(normalised), new_student()(normalised))
    assert read_package(location).class_names == ("cat", "dog", "frog", "ship")
    assert read_weights(location).keys() == rebuilt.state_dict().keys()


def test_an_explicit_tracking_uri_needs_no_global_one(
    server: MlflowServer, logged: SyncReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)

    package = read_package("models:/logged@champion", tracking_uri=server.uri)

    assert package.source == "resnet8"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "location", ["models:/nobody@champion", "models:/m-00000000", "runs:/" + "0" * 32 + "/student"]
)
def test_a_model_that_is_not_there_is_named(client: MlflowClient, location: str) -> None:
    with pytest.raises(UserError, match=location):
        load_student(location)


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"no MLflow server at http://127\.0\.0\.1:9"):
        load_student("models:/logged@champion")


def test_a_foreign_model_is_refused_by_name(client: MlflowClient, tmp_path: Path) -> None:
    experiment_id = client.create_experiment("foreign")
    model = client.create_logged_model(experiment_id, name="foreign")
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    client.log_model_artifacts(model.model_id, str(tmp_path))
    client.finalize_logged_model(model.model_id, "READY")

    with pytest.raises(UserError, match="brings no rebuildable network"):
        load_student(f"models:/{model.model_id}")


def test_a_local_database_serves_students_too(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DCD_HOME", str(tmp_path))  # where the default database is
    monkeypatch.chdir(tmp_path)
    network = new_student(1)
    save(run / "student", network)

    report = track(
        run,
        default_tracking_uri(tmp_path),
        register="local",
        artifact_root=str(tmp_path / "mlartifacts"),
    )

    assert report.pending is None
    rebuilt = load_student("models:/local@champion", with_normalization=True)
    expected = network(normalize(images(3), mean=MEAN, std=STD))
    torch.testing.assert_close(rebuilt(images(3)), expected, rtol=1e-6, atol=1e-6)
    client = MlflowClient(default_tracking_uri(tmp_path))
    version = client.get_model_version_by_alias("local", "champion")
    assert version.run_id == report.run_id
    assert report.model_uri is not None
    model = client.get_logged_model(report.model_uri.removeprefix("models:/"))
    assert model.tags["mlflow.modelVersions"] == '[{"name": "local", "version": "1"}]'


def test_a_second_sync_logs_and_registers_nothing_again(
    client: MlflowClient, server: MlflowServer, run: Folder
) -> None:
    save(run / "student", new_student())
    first = track(run, server.uri, register="once")
    state = run.read_json("tracking/state.json")
    for lost in ({"finished"}, {"registered", "finished"}, {"model", "registered", "finished"}):
        kept = {key: value for key, value in state.items() if key not in lost}
        run.write_json("tracking/state.json", kept)  # as after a crash before the note
        again = sync_run(run)
        assert again.pending is None
        assert again.model_uri == first.model_uri

    assert [v.version for v in client.search_model_versions("name = 'once'")] == ["1"]
    assert first.run_id is not None
    assert len(client.get_run(first.run_id).outputs.model_outputs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        "log_model_artifacts",
        "log_outputs",
        "finalize_logged_model",
        "create_model_version",
        "set_registered_model_alias",
    ],
)
def test_a_crash_before_or_after_any_step_leaves_one_model_and_one_version(
    client: MlflowClient, server: MlflowServer, run: Folder, step: str
) -> None:
    save(run / "student", new_student())
    crashing = textwrap.dedent(
        """
        import os, sys
        from mlflow import MlflowClient
        from orchestrator.storage import Folder
        from orchestrator.tracking import sync_run
        step, when = sys.argv[2:]
        call = getattr(MlflowClient, step)
        def crash(*args, **kwargs):
            if when == "after":
                call(*args, **kwargs)
            os._exit(9)
        setattr(MlflowClient, step, crash)
        sync_run(Folder(sys.argv[1]))
        """
    )
    name = f"crash at {step}"
    request_and_finish(run, server.uri, register=name)
    for when in ("before", "after"):
        died = subprocess.run(
            [sys.executable, "-c", crashing, run.location, step, when], timeout=120
        )
        assert died.returncode == 9

    report = sync_run(run)

    assert report.pending is None
    assert report.run_id is not None
    models = client.get_run(report.run_id).outputs.model_outputs
    assert [f"models:/{model.model_id}" for model in models] == [report.model_uri]
    assert client.get_model_version_by_alias(name, "champion").version == "1"
    assert len(client.search_model_versions(f"name = '{name}'")) == 1
    assert load_student(f"models:/{name}@champion")(torch.zeros(1, *SHAPE)).shape == (1, 4)


def test_a_better_student_of_a_resumed_run_becomes_a_second_model(
    client: MlflowClient, server: MlflowServer, run: Folder
) -> None:
    save(run / "student", new_student(0))
    first = track(run, server.uri)
    save(run / "student", new_student(1))
    finish_request(run, status="FINISHED", metrics={}, tags={}, student=True)
    second = sync_run(run)

    assert second.pending is None
    assert second.run_id == first.run_id
    assert second.model_uri != first.model_uri
    normalised = normalize(images(3), mean=MEAN, std=STD)
    newest = load_student(f"runs:/{second.run_id}/student")
    assert torch.equal(newest(normalised), new_student(1)(normalised))


def test_the_champion_changes_only_for_a_better_one_on_the_same_data(
    client: MlflowClient,
    server: MlflowServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def champion_after(
        name: str, val_top1: float, fingerprint: str = "f00d", split_seed: str = "0"
    ) -> str:
        run = Folder(str(tmp_path / name))
        lineage = {"data.fingerprint": fingerprint, "data.split_seed": split_seed}
        save(run / "student", new_student(), metrics={"val/top1": val_top1}, lineage=lineage)
        report = track(run, server.uri, register="contest", val_top1=val_top1)
        assert report.pending is None
        return str(client.get_model_version_by_alias("contest", "champion").version)

    assert champion_after("first", 50.0) == "1"
    assert champion_after("worse", 49.0) == "1"
    assert champion_after("equal", 50.0) == "1"
    assert champion_after("undefined", math.nan) == "1"
    assert "stays champion" not in caplog.text
    with caplog.at_level(logging.WARNING):
        assert champion_after("other images", 90.0, fingerprint="beef") == "1"
        assert champion_after("other split", 90.0, split_seed="1") == "1"
    assert caplog.text.count("it stays champion") == 2
    assert champion_after("better", 51.0) == "7"


def test_a_student_that_does_not_tell_its_score_is_logged_and_not_registered(
    client: MlflowClient, server: MlflowServer, run: Folder
) -> None:
    save(run / "student", new_student(), metrics={})

    report = track(run, server.uri, register="unscored")

    assert report.pending == (
        "the student cannot be registered: its package does not tell 'val/top1'"
    )
    assert report.model_uri is not None
    assert report.run_id is not None
    assert client.get_run(report.run_id).info.status == "FINISHED"
    assert client.search_model_versions("name = 'unscored'") == []


def test_a_student_that_cannot_be_exported_is_a_reason_and_the_run_still_ends(
    client: MlflowClient,
    server: MlflowServer,
    run: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "branching_network.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            class Branching(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.head = nn.Linear(192, 4)

                def forward(self, x):
                    if x.mean() > 0:  # control flow that depends on data: no graph
                        x = -x
                    return self.head(x.flatten(1))

            def branching():
                return Branching()
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    import branching_network

    save(
        run / "student",
        branching_network.branching(),
        network={
            "source": "branching_network:branching",
            "args": {},
            "num_classes": 4,
            "in_channels": 3,
        },
    )

    report = track(run, server.uri)

    assert report.pending is not None
    assert "the student cannot become an MLflow model: torch.export fails" in report.pending
    assert report.model_uri is None
    assert report.run_id is not None
    stored = client.get_run(report.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics["test/top1"] == 55.0
    assert stored.outputs is None or stored.outputs.model_outputs == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v2"])
def test_networks_that_reshape_by_batch_size_still_take_any_batch(
    client: MlflowClient, server: MlflowServer, run: Folder, name: str
) -> None:
    shape = (3, 32, 32)
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=4).eval()
    source = {"source": f"torchvision:{name}", "args": {}, "num_classes": 4, "in_channels": 3}
    save(run / "student", network, network=source, image_shape=shape)

    report = track(run, server.uri)

    assert report.pending is None
    graph = mlflow.pytorch.load_model(str(report.model_uri))
    for batch in (1, 3):
        expected = network(normalize(images(batch, shape), mean=MEAN, std=STD))
        torch.testing.assert_close(graph(images(batch, shape)), expected, rtol=1e-4, atol=1e-4)

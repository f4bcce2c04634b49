"""The README's commands as they stand, in a copy of what a newcomer has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import digits
import mlflow
import numpy as np
import pytest
import torch
from digit_folder import save_digits

from orchestrator import load_student

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
]

SHARED = digits.REPOSITORY.parent / "shared" / "cifar10"


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples, in which the command behind `make demo` has run."""
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(digits.REPOSITORY / "examples", folder / "examples")
    makefile = (digits.REPOSITORY / "Makefile").read_text()
    assert "@$(BIN)/python examples/demo.py" in makefile.split("\ndemo:")[1].split("\n\n")[0]
    demo = subprocess.run(
        [sys.executable, "examples/demo.py"],
        cwd=folder,
        env=digits.environment(PYTHONPATH=str(digits.REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert demo.returncode == 0, demo.stderr
    (folder / "demo.txt").write_text(demo.stdout)
    return folder


def test_the_demo_shows_that_distillation_pays(newcomer: Path) -> None:
    text = (newcomer / "demo.txt").read_text()
    top1 = {
        name: float(re.search(rf"{re.escape(name)} .*?(\d+\.\d) %", text)[1])  # type: ignore[index]
        for name in ("teacher", "student, labels only", "student, DCD + KD")
    }
    assert top1["teacher"] > 95
    assert top1["student, DCD + KD"] > top1["student, labels only"] + 10
    assert re.search(r"resnet8x4 .* 1,210,410", text)
    assert "dcd ui" in text


def test_the_commands_of_the_readme_work_after_the_demo(newcomer: Path) -> None:
    assert "finished" in digits.run(newcomer, "plan", "examples/digits.yaml")
    output = digits.run(newcomer, "distill", "examples/digits.yaml")
    assert "digits is already finished" in output
    assert "already finished" in digits.run(newcomer, "distill", "--resume", "digits")
    assert "nothing to send" in digits.run(newcomer, "sync")
    schema = subprocess.run(
        [sys.executable, "-m", "orchestrator", "schema"], capture_output=True, text=True, check=True
    )
    assert json.loads(schema.stdout)["title"] == "Experiment"


def test_the_search_of_the_readme_is_no_worse_than_the_papers_point(newcomer: Path) -> None:
    plan = digits.run(newcomer, "plan", "examples/digits.yaml", "--space", "dcd", "--trials", "16")
    assert re.search(r"^trials +16 by tpe, early stopping: asha$", plan, re.M)
    assert re.search(r"^compared +after epochs 4, 12$", plan, re.M)
    assert re.search(r"^at once +\d+ trials, each with 1 CPU, on ", plan, re.M)
    digits.run(newcomer, "search", "dcd", "examples/digits.yaml", "--trials", "16")
    folder = newcomer / "dcd_runs" / "digits-dcd"
    assert len(list((folder / "trials").iterdir())) == 16
    first = json.loads((folder / "trials" / "0001" / "trial.json").read_text())["settings"]
    assert first["objective.init_temperature"] == pytest.approx(np.exp(-1))
    assert first["objective.consistency_weight"] == 0.5
    own = json.loads((folder / "trials" / "0001" / "result.json").read_text())["val/top1"]
    results = [json.loads(path.read_text()) for path in (folder / "trials").glob("*/result.json")]
    finals = list((folder / "finals").iterdir())
    assert len(finals) == 3
    assert max(result["val/top1"] for result in results) >= own
    winner = finals[0].name.split("-")[0]
    best = json.loads((folder / "trials" / winner / "result.json").read_text())["val/top1"]
    assert best == max(result["val/top1"] for result in results)
    assert (folder / "report.md").exists()


def test_the_comparison_of_the_readme_has_intervals(newcomer: Path) -> None:
    output = digits.run(
        newcomer,
        "compare", "examples/digits.yaml", "--arms", "ce,kd,dcd,dcd+kd", "--seeds", "5",
    )  # fmt: skip
    folder = newcomer / "dcd_runs" / "digits-comparison"
    scores = json.loads((folder / "scores.json").read_text())
    assert {arm: len(values["test/top1"]) for arm, values in scores.items()} == {
        "ce": 5, "kd": 5, "dcd": 5, "dcd+kd": 5,
    }  # fmt: skip
    for arm in ("kd", "dcd", "dcd+kd"):
        assert re.search(rf"^{re.escape(arm)}: (better|worse|no difference)", output, re.M), output


def test_the_answers_of_the_teacher_are_listed_made_and_removed(newcomer: Path) -> None:
    digits.run(newcomer, "cache", "warm", "examples/digits.yaml")
    output = digits.run(newcomer, "cache", "ls")
    assert re.search(r"^ *[0-9a-f]{16}  resnet8x4 .* 1-30 ", output, re.M), output
    output = digits.run(newcomer, "cache", "prune", "--older-than", "7")
    assert re.search(r"^removed 0 of \d+ teachers' answers, ", output, re.M), output


def test_the_student_of_the_demo_is_evaluated_as_its_run_was(newcomer: Path) -> None:
    output = digits.run(newcomer, "evaluate", "digits")
    result = json.loads((newcomer / "dcd_runs/digits/result.json").read_text())
    found = json.loads((newcomer / "dcd_runs/digits-on-digits-test/evaluation.json").read_text())
    assert found["model"]["top1"] == pytest.approx(result["test/top1"])
    assert found["teacher"]["top1"] == pytest.approx(result["teacher/test_top1"])
    assert found["model"]["parameters"] == 78_042
    assert re.search(r"^same answer as the teacher +\d\d\.\d\d %", output, re.M), output


def test_the_student_of_the_demo_transfers_to_a_folder_of_images(newcomer: Path) -> None:
    save_digits(newcomer / "photos", classes=range(4))
    output = digits.run(
        newcomer,
        "transfer", "digits", "--data", "imagefolder",
        "--set", "data.path=photos", "--set", "data.test_fraction=0.3",
    )  # fmt: skip
    assert re.search(r"^digits +64 +1 +9\d\.\d\d ", output, re.M), output


def test_the_doctor_finds_a_healthy_machine(newcomer: Path) -> None:
    output = digits.run(newcomer, "doctor")
    for subject in ("versions", "devices", "storage", "ray", "mlflow", "storage on nodes"):
        assert re.search(rf"^ok +{subject} ", output, re.M), output
    assert "FAIL" not in output


def test_the_doctor_names_what_is_wrong(workplace: Path) -> None:
    doctor = digits.start(workplace, "doctor", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert doctor.wait(120) == 1
    assert re.search(
        r"^FAIL +mlflow +http://127.0.0.1:9: ", (workplace / "output.txt").read_text(), re.M
    )


def test_the_student_of_the_demo_loads_in_every_way(newcomer: Path) -> None:
    folder = newcomer / "dcd_runs" / "digits"
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        logits = load_student(str(folder), with_normalization=True)(images)
    assert logits.shape == (3, 10)
    state = json.loads((folder / "tracking" / "state.json").read_text())
    mlflow.set_tracking_uri(f"sqlite:///{newcomer / 'mlflow.db'}")
    try:
        uri = f"models:/{state['model']['id']}"
        served = mlflow.pyfunc.load_model(uri).predict(images.numpy())
        exported = mlflow.pytorch.load_model(uri)(images)
    finally:
        mlflow.set_tracking_uri(None)
    np.testing.assert_allclose(np.asarray(served), logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(exported.detach().numpy(), logits.numpy(), atol=1e-4)


@pytest.mark.skipif(not SHARED.exists(), reason="no real CIFAR-10 images beside this repository")
def test_a_foreign_teacher_keeps_its_accuracy_and_teaches(workplace: Path) -> None:
    shutil.copytree(digits.REPOSITORY / "examples", workplace / "examples")
    output = digits.run(
        workplace,
        "distill",
        "examples/cifar10_foreign_teacher.yaml",
        "--set", f"data.path={SHARED}/train-*.parquet",
        "--set", f"data.test_path={SHARED}/test.parquet",
        "--set", f"teacher.checkpoint={SHARED}/teacher_resnet56.th",
        "--set", "scaling.cpus_per_worker=1",
    )  # fmt: skip
    assert re.search(r"^teacher +89\.\d\d % +83\.15 %$", output, re.M), output
    result = json.loads((workplace / "dcd_runs/cifar10-foreign-teacher/result.json").read_text())
    assert result["teacher/test_top1"] == pytest.approx(83.15)
    assert result["test/top1"] > 20

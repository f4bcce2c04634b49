"""`dcd ui` in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import digits
import pytest
from mlflow import MlflowClient
from service import free_port

pytestmark = [
    pytest.mark.browser,
    pytest.mark.mlflow,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None and os.environ.get("DCD_REQUIRE_ALL_TIERS"):
    pytest.fail("chromium is needed when all tiers are required", pytrace=False)


def rendered(url: str, profile: Path) -> str:
    """The text of a page after its scripts have run."""
    assert CHROMIUM is not None
    page = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            "--window-size=1500,7000",
            "--virtual-time-budget=20000",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script).*?</\1>", "", page.stdout, flags=re.S))


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_runs_curves_and_the_student_are_on_their_pages(workplace: Path, teacher: Path) -> None:
    updates = {"scaling.workers": 0, "tracking.enabled": True, "train.epochs": 2}
    spec = digits.write(workplace / "run.yaml", digits.experiment(teacher, updates))
    digits.run(workplace, "distill", str(spec))
    client = MlflowClient(f"sqlite:///{workplace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dcd")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    (model,) = client.search_logged_models([experiment.experiment_id])

    port = free_port()
    ui = digits.start(workplace, "ui", "--port", str(port))
    try:
        digits.wait_until(
            lambda: "MLflow UI is at" in (workplace / "output.txt").read_text(), what="the UI"
        )
        root = f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}"
        pages = {
            "runs": rendered(f"{root}/runs", workplace / "profile"),
            "run": rendered(f"{root}/runs/{run.info.run_id}", workplace / "profile"),
            "curves": rendered(
                f"{root}/runs/{run.info.run_id}/model-metrics", workplace / "profile"
            ),
            "model": rendered(f"{root}/models/{model.model_id}", workplace / "profile"),
        }
    finally:
        ui.send_signal(signal.SIGINT)
        assert ui.wait(30) == 130
    assert re.search(r"\brun\b", pages["runs"])
    assert "digits (" in pages["runs"]
    for text in ("val/top1", "train/contrast", "resnet8", "dcd+kd", "teacher.source"):
        assert text in pages["run"], text
    for term in ("temperature", "bias", "contrast", "consistency", "kd", "ce", "top1"):
        assert re.search(rf"\b{term}\b", pages["curves"]), term
    assert "student" in pages["model"]
    assert "Ready" in pages["model"]

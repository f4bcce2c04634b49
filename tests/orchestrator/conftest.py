"""What the tests of the orchestrator share."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_experiment


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with no place set by the environment."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for variable in (
        "DCD_HOME",
        "MLFLOW_TRACKING_URI",
        "RAY_ADDRESS",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
    ):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    """Weights of the tiny teacher, outside the working directory."""
    return tiny_experiment.save_teacher(tmp_path)

"""What the tests of the orchestrator share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_experiment
import torch
from torch import Tensor
from torchvision import models


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks this small lose time to the exchange between threads."""
    torch.set_num_threads(1)


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


@pytest.fixture
def downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], dict[str, Tensor]]:
    """Puts random weights where torchvision keeps what it has downloaded before."""

    def put(name: str, weights: str) -> dict[str, Tensor]:
        auxiliary = name in ("googlenet", "inception_v3")
        extra = {"init_weights": False} if auxiliary else {}
        state: dict[str, Tensor] = models.get_model(name, **extra).state_dict()
        url = models.get_model_weights(name)[weights].url
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(state, folder / url.rpartition("/")[2])
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        return state

    return put

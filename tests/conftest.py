"""What all tests share. Its being here puts this folder on the path, for the modules in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

SERVICES = "tests/integration/"
"""Where tests start Ray, MLflow and the like."""
WITHOUT_RAY = tuple(
    f"{SERVICES}test_{name}.py"
    for name in (
        "browser",
        "chains",
        "evaluate_and_transfer",
        "group_tracking",
        "student_model",
        "tracking",
        "ui",
    )
)
"""Modules there that start an MLflow server, but no Ray."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Networks this small lose time to the exchange between threads, and the number of threads
    decides the last digits."""
    torch.set_num_threads(1)


@pytest.fixture
def downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], dict[str, Tensor]]:
    """Puts random weights where torchvision keeps what it has downloaded before."""

    from torchvision import models

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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """One process of pytest-xdist runs all tests that start Ray, one after the other.

    Those that start other services are kept together too, because modules share what they start.

    ``--dist loadgroup``, which is meant for this, groups nothing with pytest 9.2 and xdist 3.8.
    """
    from xdist.scheduler import LoadScopeScheduling

    class RayInOneProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if not nodeid.startswith(SERVICES):
                return nodeid
            return "other services" if nodeid.startswith(WITHOUT_RAY) else "Ray"

    return RayInOneProcess(config, log)

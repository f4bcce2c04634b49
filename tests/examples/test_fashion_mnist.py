"""The example on all images of Fashion-MNIST plans as it would run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.experiment_file import load_experiment
from orchestrator.plan import describe_plan

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion_mnist.yaml"
IMAGES = Path("/usr/share/datasets/fashion-mnist")

if not IMAGES.is_dir() and os.environ.get("DCD_REQUIRE_ALL_TIERS"):
    pytest.fail("dataset-fashion-mnist is needed when all tiers are required", pytrace=False)


@pytest.mark.skipif(
    not IMAGES.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)
def test_the_example_plans_a_run_on_all_sixty_thousand_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    plan = describe_plan(load_experiment(EXAMPLE))

    assert "train 54,000 · val 6,000 · test 10,000 images, 10 classes, 3x28x28" in plan
    assert "trained first as" in plan and "on 54,000 images" in plan
    assert "unbalanced" not in plan
    assert list(tmp_path.iterdir()) == []

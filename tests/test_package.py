"""The wheel: what it contains, and that it works away from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel; its build backend is among the test dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, REPOSITORY],
        check=True,
        timeout=120,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_three_packages_and_every_search_space(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "dcd_core",
        "orchestrator",
        "search_spaces",
    }
    for path in (REPOSITORY / "search_spaces").glob("*.yaml"):
        assert f"search_spaces/{path.name}" in names
    for package in ("dcd_core", "orchestrator"):
        for path in (REPOSITORY / package).rglob("*.py"):
            assert str(path.relative_to(REPOSITORY)) in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_gives_a_working_command_anywhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
         "--no-deps", "--target", site, wheel],
        check=True, timeout=120,
    )  # fmt: skip
    code = (
        "import orchestrator, search_spaces; "
        "print(orchestrator.__file__); print(search_spaces.available_spaces())"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.startswith(str(site))
    assert "dcd_paper" in run.stdout
    command = subprocess.run(
        [site / "bin" / "dcd", "--help"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "distill" in command.stdout

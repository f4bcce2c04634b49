from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ALLOWED = {"torch", "torchvision", "numpy", "dcd_core", *sys.stdlib_module_names}


def _imported_packages(source: str) -> set[str]:
    """Top-level names of all imports, those inside functions too."""
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            packages.add((node.module or "").partition(".")[0])
    return packages


FILES = sorted((REPOSITORY / "dcd_core").rglob("*.py"))


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_dcd_core_imports_only_torch_torchvision_and_numpy(path: Path) -> None:
    assert _imported_packages(path.read_text()) <= ALLOWED


def test_imports_inside_functions_are_seen() -> None:
    source = "import torch.nn as nn\ndef f():\n    from ray.train import report\n"
    assert _imported_packages(source) == {"torch", "ray"}
    assert "ray" not in ALLOWED
    assert "mlflow" not in ALLOWED
    assert "orchestrator" not in ALLOWED
    assert "pydantic" not in ALLOWED

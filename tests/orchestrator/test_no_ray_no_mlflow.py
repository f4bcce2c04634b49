"""In-process runs without tracking need PyTorch and the readers of the data, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_experiment import tiny_values

REPOSITORY = Path(__file__).resolve().parents[2]

WITHOUT = """
import sys

HIDDEN = ("ray", "mlflow", "optuna")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from orchestrator.cli import main
main()
"""

LISTING = """
import sys
from orchestrator.cli import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "torchvision", "ray", "mlflow", "optuna", "pyarrow", "sklearn"}
    print("loaded:", sorted(heavy & sys.modules.keys()), file=sys.stderr)
    raise
"""


def run(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(REPOSITORY), str(Path(__file__).parent)]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.slow
def test_distill_in_process_needs_neither_ray_nor_mlflow_nor_optuna(
    workplace: Path, teacher_file: Path
) -> None:
    (workplace / "e.yaml").write_text(yaml.safe_dump(tiny_values(teacher_file)))
    done = run(WITHOUT, "distill", "e.yaml", folder=workplace)
    assert done.returncode == 0, done.stderr
    assert "student, last epoch" in done.stdout
    result = json.loads((workplace / "dcd_runs/tiny/result.json").read_text())
    assert 0 <= result["test/top1"] <= 100
    again = run(WITHOUT, "distill", "--resume", "tiny", folder=workplace)
    assert again.returncode == 0, again.stderr
    assert "tiny is already finished" in again.stdout


@pytest.mark.slow
def test_the_finder_above_really_hides_them(workplace: Path) -> None:
    for name in ("ray", "mlflow", "optuna"):
        code = WITHOUT.replace("from orchestrator.cli import main\nmain()", f"import {name}.x")
        done = run(code, folder=workplace)
        assert done.returncode == 1
        assert f"No module named '{name}'" in done.stderr


@pytest.mark.slow
def test_plan_in_process_needs_them_neither(workplace: Path, teacher_file: Path) -> None:
    (workplace / "e.yaml").write_text(yaml.safe_dump(tiny_values(teacher_file)))
    done = run(WITHOUT, "plan", "e.yaml", folder=workplace)
    assert done.returncode == 0, done.stderr
    assert "0: in this process" in done.stdout
    assert os.listdir(workplace) == ["e.yaml"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["distill", "--help"], 0),
        (["schema"], 0),
        (["distill", "absent.yaml"], 2),
        (["distill", "wrong.yaml"], 2),
        (["distil"], 2),
    ],
    ids=str,
)
def test_help_schema_and_mistakes_load_nothing_heavy(
    workplace: Path, arguments: list[str], code: int
) -> None:
    (workplace / "wrong.yaml").write_text("name: x\nobjectiv: {}\n")
    done = run(LISTING, *arguments, folder=workplace)
    assert done.returncode == code, done.stderr
    assert "loaded: []" in done.stderr
    assert "Traceback" not in done.stderr

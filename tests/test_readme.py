"""README and examples say what works: every snippet is run or checked here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.experiment_file import build_experiment, load_experiment
from orchestrator.spec import Experiment
from search_spaces import available_spaces, load_space

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()

# Every command of the README, and where it is run: a file, and how it is written there.
COVERED = {
    "make demo": ("tests/integration/test_demo.py", "examples/demo.py"),
    "make test": (".ci/run", "make test"),
    "dcd plan examples/digits.yaml": ("tests/integration/test_demo.py", '"plan", "examples/dig'),
    "dcd distill examples/digits.yaml": (
        "tests/integration/test_demo.py",
        '"distill", "examples/digits.yaml"',
    ),
    "dcd distill --resume digits": (
        "tests/integration/test_demo.py",
        '"distill", "--resume", "digits"',
    ),
    "dcd search dcd examples/digits.yaml --trials 16": (
        "tests/integration/test_demo.py",
        '"search", "dcd", "examples/digits.yaml", "--trials", "16"',
    ),
    "dcd compare examples/digits.yaml --arms ce,kd,dcd,dcd+kd --seeds 5": (
        "tests/integration/test_demo.py",
        '"compare", "examples/digits.yaml", "--arms", "ce,kd,dcd,dcd+kd", "--seeds", "5"',
    ),
    "dcd plan examples/digits.yaml --space dcd --trials 16": (
        "tests/integration/test_demo.py",
        '"plan", "examples/digits.yaml", "--space", "dcd", "--trials", "16"',
    ),
    "dcd evaluate digits": (
        "tests/integration/test_demo.py",
        'run(newcomer, "evaluate", "digits")',
    ),
    "dcd transfer digits --data imagefolder --set data.path=photos --set data.test_fraction=0.3": (
        "tests/integration/test_demo.py",
        '"transfer", "digits", "--data", "imagefolder", "--set", "data.path=photos", "--set", '
        '"data.test_fraction=0.3"',
    ),
    "dcd cache ls": ("tests/integration/test_demo.py", 'run(newcomer, "cache", "ls")'),
    "dcd cache warm examples/digits.yaml": (
        "tests/integration/test_demo.py",
        '"cache", "warm", "examples/digits.yaml"',
    ),
    "dcd cache prune --older-than 7": (
        "tests/integration/test_demo.py",
        '"cache", "prune", "--older-than", "7"',
    ),
    "dcd sync": ("tests/integration/test_demo.py", 'run(newcomer, "sync")'),
    "dcd ui": ("tests/integration/test_browser.py", 'start(workplace, "ui"'),
    "dcd doctor": ("tests/integration/test_demo.py", 'run(newcomer, "doctor")'),
    "source .venv/bin/activate": ("Makefile", "VENV ?= .venv"),
    "ray start --head": ("tests/integration/test_command.py", '"start", "--head"'),
    "dcd schema": ("tests/integration/test_demo.py", '"orchestrator", "schema"'),
    "RAY_AUTH_MODE=token ray job submit --working-dir . -- python -m orchestrator distill "
    "examples/digits.yaml": ("tests/integration/test_command.py", '"--working-dir", "."'),
}


def snippets(language: str) -> list[str]:
    """Fenced blocks of the README."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    lines = [
        line.split("#")[0].strip() for block in snippets("bash") for line in block.splitlines()
    ]
    assert set(filter(None, lines)) == set(COVERED)
    for command, (place, text) in COVERED.items():
        written = re.sub(r"\s+", " ", (REPOSITORY / place).read_text())
        assert text in written, (command, place)


def test_the_experiments_of_the_readme_are_valid() -> None:
    text, chain, cache = snippets("yaml")
    values = yaml.safe_load(text)
    experiment = build_experiment(values, where="README")
    assert experiment.scaling.workers == 2
    assert experiment.teacher is not None
    for line in cache.splitlines():  # two ways to write one section
        section = yaml.safe_load(line)
        assert build_experiment(values | section, where="README").teacher_cache.mode == "auto"
    # What it does is seen in tests/integration/test_chains.py.
    second = build_experiment(yaml.safe_load(chain), where="README")
    assert second.tracking.register_as == "small"


def test_the_loss_of_the_readme_runs_as_it_stands() -> None:
    (code,) = [block for block in snippets("python") if "dcd_core" in block]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=120)


def test_files_of_the_map_exist() -> None:
    for place in re.findall(
        r"^\| `([^`]+)` \| [a-zA-Z]", README.split("Where things are")[1], re.M
    ):
        assert (REPOSITORY / place).exists(), place


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples").glob("*.yaml")))
def test_every_example_is_a_valid_experiment(path: Path) -> None:
    assert load_experiment(path).name


@pytest.mark.parametrize("name", available_spaces())
def test_every_search_space_fits_the_experiment(name: str) -> None:
    assert load_space(name, Experiment).parameters

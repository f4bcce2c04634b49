"""A network's code as a digest: it changes with all that the network runs and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dcd_core import build_model
from orchestrator.code_digest import code_digest

REPOSITORY = Path(__file__).resolve().parents[2]

FILES = {
    "network.py": """
import functools
import numpy
from torch import nn
from settings import SLOPE
from parts.blocks import act
import plain.helpers

class Network(nn.Linear):
    def forward(self, x):
        from late import shift
        return act(super().forward(x), SLOPE) + shift()

def direct():
    return Network(2, 2)

partial = functools.partial(Network, 2, 2)

class Builder:
    def __call__(self):
        return Network(2, 2)

instance = Builder()
""",
    "settings.py": "SLOPE = 0.1",
    "late.py": "def shift():\n    return 0.0",
    "parts/__init__.py": "",
    "parts/blocks.py": "from . import scale\nfrom .deep.more import x\nact = lambda v, s: v * s",
    "parts/scale.py": "y = 1",
    "parts/deep/__init__.py": "",
    "parts/deep/more.py": "x = 1",
    "plain/helpers.py": "z = 1",  # a package without __init__.py
    "blocks.py": "of_another = 1",
    "unrelated.py": "w = 1",
}
SCRIPT = """
import sys
sys.path.insert(0, ".")
import network
from orchestrator.code_digest import code_digest
for name in sys.argv[1:]:
    __import__(name)
for builder in (network.direct, network.partial, network.instance):
    print(code_digest(builder(), builder="network"))
"""


@pytest.fixture
def digest(tmp_path: Path) -> Callable[..., str]:
    """That of a network of the user's own, in a fresh process."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(*imported: str, seed: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *imported],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (found,) = set(done.stdout.split())
        return found

    return run


@pytest.mark.slow
def test_a_change_anywhere_in_the_code_changes_the_digest(
    digest: Callable[..., str], tmp_path: Path
) -> None:
    before = digest()
    assert digest("unrelated", "pandas", seed=1) == before
    (tmp_path / "unrelated.py").write_text("w = 2")
    (tmp_path / "blocks.py").write_text("of_another = 2")
    assert digest(seed=2) == before
    seen = {before}
    for name in set(FILES) - {"unrelated.py", "blocks.py"}:
        (tmp_path / name).write_text(FILES[name] + "\nchanged = 1\n")
        found = digest()
        assert found not in seen, name
        seen.add(found)


def test_built_in_networks_differ_by_their_files() -> None:
    same = [code_digest(build_model(name, num_classes=10)) for name in ("resnet8", "resnet20")]
    assert same[0] == same[1]
    assert code_digest(build_model("vgg8", num_classes=10)) != same[0]

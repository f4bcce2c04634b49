"""What code a network consists of, as a digest: the same weights in other code answer otherwise."""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from torch import nn

_LIBRARIES = ("torch", "torchvision", "numpy", "timm")
"""Known by their versions."""


def code_digest(network: nn.Module, *, builder: str | None = None) -> str:
    """16 hex digits over the source files of a network's classes, and of whatever of the user's own
    those files name.

    Args:
        network: built.
        builder: module of the function that has built it.
    """
    names = {type(module).__module__ for module in network.modules()} | {builder or __name__}
    files = _files(sys.modules[name] for name in names if name in sys.modules)
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _files(modules: Iterable[ModuleType]) -> set[Path]:
    files: set[Path] = set()
    waiting = list(modules)
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        file = getattr(module, "__file__", None)
        if module.__name__ in seen or file is None or module.__name__ == __name__:
            continue
        seen.add(module.__name__)
        if module.__name__.split(".")[0] in _LIBRARIES or not file.endswith(".py"):
            continue
        files.add(Path(file))
        if _is_installed(file):
            continue
        for value in list(vars(module).values()):
            named = value if isinstance(value, ModuleType) else inspect.getmodule(value)
            if named is not None and not _is_installed(getattr(named, "__file__", None) or ""):
                waiting.append(named)
    return files


def _is_installed(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    paths = sysconfig.get_paths()
    return (
        any(file.startswith(paths[kind]) for kind in ("stdlib", "purelib", "platlib")) or not file
    )

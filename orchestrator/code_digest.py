"""What code a network consists of, as a digest: the same weights in other code answer otherwise."""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from importlib.metadata import version
from pathlib import Path

from torch import nn

_LIBRARIES = ("torch", "torchvision", "numpy", "timm")
"""Known by their versions."""


def code_digest(network: nn.Module, *, builder: str | None = None) -> str:
    """16 hex digits over the source files of a network's classes and all that these import, but for
    installed packages, and over the versions of the libraries that its classes are from.

    Imports are read in the sources, so that the digest does not depend on what else a process has
    imported. A file is read once in a process: what is imported later from a changed one is not
    what runs here.

    Args:
        network: built.
        builder: module of the function that has built it.
    """
    names = {type(module).__module__ for module in network.modules()}
    if builder is not None and builder in sys.modules:
        names.add(builder)
    digest = hashlib.sha256()
    libraries = {name.partition(".")[0] for name in names} & set(_LIBRARIES)
    for library in sorted(libraries):
        digest.update(f"{library} {version(library)}\n".encode())
    for name, content in sorted(_contents(names).items()):
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:16]


def _contents(names: Iterable[str]) -> dict[str, str]:
    """Digest of each module's file."""
    found: dict[str, str] = {}
    waiting, seen = list(names), set(_LIBRARIES)
    first = set(waiting)
    while waiting:
        name = waiting.pop()
        if name in seen or name.split(".")[0] in _LIBRARIES:
            continue
        seen.add(name)
        file = _file_of(name)
        if file is None or (_is_installed(file) and name not in first):
            continue
        content, imports = _read(file)
        found[name] = content
        if not _is_installed(file):
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += [full for each in imports for full in _resolved(each, package)]
    return found


@functools.cache
def _read(file: Path) -> tuple[str, tuple[tuple[int, str, str], ...]]:
    """Digest of a file, and its imports at any depth: dots, module, and a name in it."""
    source = file.read_bytes()
    imports: list[tuple[int, str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports += [(node.level, node.module or "", alias.name) for alias in node.names]
    return hashlib.sha256(source).hexdigest(), tuple(imports)


def _resolved(imported: tuple[int, str, str], package: str) -> Iterator[str]:
    """Full names of the modules that an import may be of: each package on the way, too."""
    dots, module, name = imported
    if dots:
        above = package.split(".")[: len(package.split(".")) - dots + 1]
        module = ".".join([*above, module] if module else above)
    parts = [*module.split("."), *([name] if name and name != "*" else [])]
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def _file_of(name: str) -> Path | None:
    """The source file of a module, which is not imported for that."""
    path: list[str] | None = None
    spec = None
    for end in range(1, len(name.split(".")) + 1):
        spec = PathFinder.find_spec(".".join(name.split(".")[:end]), path)
        if spec is None:
            break
        path = list(spec.submodule_search_locations or [])
    origin = spec.origin if spec is not None else None
    if origin is None:  # one that came another way, such as an editable installation's
        origin = getattr(sys.modules.get(name), "__file__", None)
    return Path(origin) if origin and origin.endswith(".py") else None


def _is_installed(file: Path) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    return Path(sysconfig.get_paths()["stdlib"]) in file.parents

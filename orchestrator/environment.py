"""What a run was made with: versions, machine, commit."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "pyarrow", "pydantic", "numpy")


def package_versions() -> dict[str, str]:
    """Installed versions; "absent" where there is none."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


def git_commit() -> str | None:
    """The working directory's commit, with ``-dirty`` where files differ; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if dirty else "")


def describe_environment() -> str:
    """A text for the run's artifacts."""
    lines = [f"{name} {number}" for name, number in package_versions().items()]
    lines.append(f"platform {platform.platform()}")
    lines += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    lines.append(f"command {shlex.join(sys.argv)}")
    lines.append(f"commit {git_commit() or 'unknown'}")
    return "\n".join(lines) + "\n"


def _git(*arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, timeout=5, check=True
    )
    return result.stdout.strip()

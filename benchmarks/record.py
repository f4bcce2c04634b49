"""What every benchmark does with its numbers: medians with their spread, a table, a JSON file."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator.environment import git_commit, package_versions


class Spread(dict[str, float]):
    """n, median, least and largest of some numbers."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__(
            n=len(values), median=statistics.median(values), min=min(values), max=max(values)
        )

    def text(self, digits: int) -> str:
        """The median, and the others in brackets."""
        median, low, high = (f"{self[key]:.{digits}f}" for key in ("median", "min", "max"))
        return f"{median} ({low} to {high})"


def machine() -> dict[str, Any]:
    """What a number was measured on."""
    capabilities = {
        "avx512": torch.cpu._is_avx512_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    return {
        "processor": _processor(),
        "capabilities": [name for name, has in capabilities.items() if has],
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": package_versions(),
        "commit": git_commit(),
    }


def describe_machine(found: Mapping[str, Any]) -> str:
    """In one line."""
    gpus = ", ".join(found["gpus"]) or "no GPU"
    return (
        f"{found['processor']} ({', '.join(found['capabilities']) or 'no AVX-512'}), "
        f"{found['threads']} threads, {gpus}, torch {found['versions']['torch']}"
    )


def run_quietly(command: Sequence[str], folder: Path) -> str:
    """Run a command in a folder; what it printed. What it complained of is told when it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def write_json(path: str | None, values: Mapping[str, Any]) -> None:
    """Write what was measured, with the machine, where that is wanted."""
    if path is not None:
        Path(path).write_text(json.dumps({"machine": machine(), **values}, indent=1) + "\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table whose columns line up."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    for row in (header, rule, *rows):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

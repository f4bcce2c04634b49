"""Distil a student on real handwritten digits, and set it beside one that had labels alone.

Run by `make demo`. Needs no network, no GPU and no account. It does through the library what
`dcd distill examples/digits.yaml` does on the command line; finished runs are found again, so a
second `make demo` is quick.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from orchestrator import changed, distill, load_experiment, load_student, read_package, session
from orchestrator.errors import OrchestratorError

DIGITS = Path(__file__).parent / "digits.yaml"
FORWARD_PASSES = 50


def main() -> None:
    """Distil, train the plain student, print the table."""
    started = time.perf_counter()
    distilled = load_experiment(DIGITS)
    plain = changed(
        distilled,
        {"name": f"{distilled.name}-plain", "teacher": None, "objective": {"method": "ce"}},
    )
    print("Distilling a small network on handwritten digits: one to two minutes on 2 cores.")
    with session(distilled.scaling):  # one Ray for both
        student = distill(distilled)
        alone = distill(plain)

    location = student.folder.location
    package = read_package(location)
    runs = student.folder.location.rsplit("/", 1)[0]
    table = Table("", "network", "parameters", "test top-1", "ms per image")
    for name, folder, top1 in (
        (
            "teacher",
            f"{runs}/{package.lineage['teacher.run']}",
            student.metrics["teacher/test_top1"],
        ),
        ("student, labels only", alone.folder.location, alone.metrics["test/top1"]),
        ("student, DCD + KD", location, student.metrics["test/top1"]),
    ):
        network = load_student(folder)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        milliseconds = milliseconds_per_image(network, package.image_shape)
        table.add_row(
            name,
            read_package(folder).source,
            f"{parameters:,}",
            f"{top1:.1f} %",
            f"{milliseconds:.2f}",
        )
    Console().print(table)
    threads = torch.get_num_threads()
    print(f"(ms per image: median of {FORWARD_PASSES}, batch 1, {threads} CPU threads)")
    print(f"\nbrowse the runs   {Path(sys.executable).parent / 'dcd'} ui")
    print("load the student  from orchestrator import load_student")
    print(f"                  student = load_student({location!r}, with_normalization=True)")
    print(f"\nThis took {time.perf_counter() - started:.0f} s.")


@torch.no_grad()
def milliseconds_per_image(network: nn.Module, image_shape: tuple[int, ...]) -> float:
    """Median time of a forward pass of one image, in milliseconds."""
    image = torch.zeros(1, *image_shape)
    times = []
    for _ in range(FORWARD_PASSES):
        started = time.perf_counter()
        network(image)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


if __name__ == "__main__":
    try:
        main()
    except OrchestratorError as error:
        sys.exit(f"error: {error}")

"""Images per second of `dcd distill` with one and with two workers of one core each.

    python -m benchmarks scaling

The same networks, global batch and images (digits, at 32 x 32), by the product's own command in
process: Ray Train, gloo, checkpoints and journal included. One and two workers run in turns; the
first epoch of each run does not count.

Two cores are rarely twice as fast as one, since they share caches, memory and perhaps a physical
core. What the machine has to give is the ratio of two processes that train at once, each on half of
the batch and without any exchange, to one alone.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.experiment import digits_experiment
from benchmarks.record import Spread, describe_machine, machine, print_table, write_json
from benchmarks.step import made_up_images, networks, ours
from orchestrator.distillation import distill
from orchestrator.experiment_file import build_experiment
from orchestrator.journal import Journal
from orchestrator.progress import Display

CONFIGURATIONS = ((1, "local"), (2, "local"), (2, "sync"))


def images_per_second(folder: Path, workers: int, norm: str, args: argparse.Namespace) -> float:
    """The median over the epochs of one run."""
    experiment = build_experiment(
        digits_experiment(
            folder,
            teacher=args.teacher,
            student=args.student,
            batch_size=args.batch_size,
            epochs=1 + args.epochs,
            sections={
                "scaling": {
                    "workers": workers,
                    "cpus_per_worker": 1,
                    "gpus_per_worker": 0,
                    "batch_norm": norm,
                },
                "train": {"precision": "fp32", "compile": False},
                "tracking": {"enabled": False},
            },
        ),
        where="benchmark",
    )
    display = Display(Console(file=io.StringIO()))
    outcome = distill(experiment, new=True, display=display)
    speeds = [
        point.value
        for point in Journal(outcome.folder).points()
        if point.name == "time/images_per_second" and point.step > 1
    ]
    return statistics.median(speeds)


def without_exchange(batch_size: int, turns: int, args: argparse.Namespace) -> list[float]:
    """Images per second of one process with one thread, of each turn of ten steps."""
    torch.set_num_threads(1)
    train = ours(
        made_up_images(),
        networks(args.teacher, args.student),
        batch_size=batch_size,
        precision=torch.float32,
        compiled=False,
        graphed=False,
        device=torch.device("cpu"),
        cache=None,
    )
    train(3)
    speeds = []
    for _ in range(turns):
        started = time.perf_counter()
        train(10)
        speeds.append(10 * batch_size / (time.perf_counter() - started))
    return speeds


def ceiling(args: argparse.Namespace) -> Spread:
    """Two processes without any exchange against one."""
    ratios = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for _ in range(args.turns):
            (one,) = pool.starmap(without_exchange, [(args.batch_size, 2, args)])
            halves = pool.starmap(
                without_exchange, [(args.batch_size // 2, 4, args)] * 2, chunksize=1
            )
            two = sum(statistics.median(half) for half in halves)
            ratios.append(two / statistics.median(one))
    return Spread(ratios)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", help="where to write the numbers")
    args = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)
    speeds: dict[tuple[int, str], list[float]] = {key: [] for key in CONFIGURATIONS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(args.turns):
            for workers, norm in CONFIGURATIONS:
                speed = images_per_second(folder, workers, norm, args)
                speeds[workers, norm].append(speed)
    base = speeds[CONFIGURATIONS[0]]
    rows, results = [], []
    for (workers, norm), values in speeds.items():
        ratios = Spread([own / one for own, one in zip(values, base, strict=True)])
        rows.append([str(workers), norm, Spread(values).text(0), ratios.text(2)])
        results.append(
            {"workers": workers, "batch_norm": norm, "images_per_second": values, "ratio": ratios}
        )
    print(f"{args.teacher} -> {args.student}, batch {args.batch_size}, {args.turns} turns")
    print(describe_machine(machine()))
    print_table(["workers", "BatchNorm", "images/s", "ratio to one worker"], rows)
    most = ceiling(args)
    print(f"two processes without any exchange, to one: {most.text(2)}")
    write_json(args.json, {"arguments": vars(args), "results": results, "ceiling": most})


if __name__ == "__main__":
    main()

"""Images per second of `dcd distill` with one and with two workers of one core each.

    python -m benchmarks scaling

The same networks, global batch and images (digits, at 32 x 32), by the product's own command in
process: Ray Train, gloo, checkpoints and journal included. One and two workers run in turns; the
first epoch of each run does not count.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.experiment import digits_experiment
from benchmarks.record import Spread, describe_machine, machine, print_table, write_json
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
    write_json(args.json, {"arguments": vars(args), "results": results})


if __name__ == "__main__":
    main()

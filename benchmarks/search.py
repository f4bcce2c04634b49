"""CPU-seconds of a search whose trials share the teacher's answers, and without that.

    python -m benchmarks search

16 trials over loss settings, all to the last epoch, each on one core: once with the teacher cache
and once with every trial running the teacher itself, as separate runs would. CPU-seconds are those
of the processes that train, by epoch (`time/cpu_seconds`), so that start-up is apart; they are held
against plain loops too (see `step`), of which a few are run, two at once, and the rest reckoned.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.experiment import digits_experiment
from benchmarks.record import (
    describe_machine,
    machine,
    print_table,
    run_quietly,
    write_json,
)
from benchmarks.step import made_up_images, networks, plain
from orchestrator.data import load_dataset
from orchestrator.experiment_file import load_experiment
from orchestrator.journal import Journal
from orchestrator.storage import Folder

SPACE = {
    "title": "Loss settings",
    "description": "What a search over loss settings varies.",
    "parameters": {
        "objective.kd_weight": {"loguniform": [0.3, 3.0]},
        "objective.dcd_weight": {"loguniform": [0.3, 3.0]},
        "objective.init_temperature": {"loguniform": [0.1, 1.0]},
    },
    "trials": 16,
    "searcher": "random",
    "scheduler": "none",
}
SETTINGS = {"fp32": "fp32", "fast (bf16)": "bf16"}


def search(folder: Path, name: str, precision: str, mode: str, args: argparse.Namespace) -> Any:
    """One search: CPU-seconds of each epoch of each trial, and how much of the teacher it read."""
    values = digits_experiment(
        folder,
        teacher=args.teacher,
        student=args.student,
        batch_size=64,
        epochs=args.epochs,
        sections={
            "train": {"precision": precision, "compile": False},
            "scaling": {"workers": 0, "cpus_per_worker": 1},
            "tracking": {"enabled": False},
            "teacher_cache": {"mode": mode, "path": str(folder / f"cache-{name}")},
        },
    )
    (folder / "experiment.yaml").write_text(yaml.safe_dump(values))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    command = [sys.executable, "-m", "orchestrator", "search", "space.yaml", "experiment.yaml"]
    options = ["--trials", str(args.trials), "--final-seeds", "0", "--name", name]
    started = time.time()
    run_quietly([*command, *options], folder)
    trials = Folder(str(folder / "runs" / name / "trials"))
    found: list[dict[str, float]] = []
    for trial in trials.names():
        epochs: dict[int, dict[str, float]] = {}
        for point in Journal(trials / trial).points():
            if point.step > 0:
                epochs.setdefault(point.step, {})[point.name] = point.value
        found += [
            {
                "cpu_s": values["time/cpu_seconds"],
                "cached": values.get("time/teacher_cached_percent", 0.0),
            }
            for values in epochs.values()
        ]
    return {
        "cpu_s": sum(epoch["cpu_s"] for epoch in found),
        "wall_s": time.time() - started,
        "epochs": found,
        "teacher_passes": sum(1 - epoch["cached"] / 100 for epoch in found),
    }


def plain_loop(args: argparse.Namespace, num_images: int) -> float:
    """CPU-seconds of one plain loop over as many images as a trial sees, its loaders' included."""
    torch.set_num_threads(1)
    train = plain(
        made_up_images(),
        networks(args.teacher, args.student),
        batch_size=64,
        device=torch.device("cpu"),
    )
    train(1)  # starts the loaders
    before = _cpu_seconds()
    train(num_images // 64)
    return _cpu_seconds() - before


def _cpu_seconds() -> float:
    import psutil

    own = psutil.Process()
    return sum(
        times.user + times.system
        for times in (p.cpu_times() for p in (own, *own.children(recursive=True)))
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--plain-loops", type=int, default=4)
    parser.add_argument("--json", help="where to write the numbers")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for setting, precision in SETTINGS.items():
            for mode in ("on", "off"):
                own = f"{precision}-{mode}"
                results[f"{setting}, cache {mode}"] = search(folder, own, precision, mode, args)
        data = load_experiment(folder / "experiment.yaml").data
        num_images = len(load_dataset(data).train) * args.epochs
    # Not a pool of multiprocessing's, whose processes may not start loaders.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        tasks = [pool.submit(plain_loop, args, num_images) for _ in range(args.plain_loops)]
        loops = [task.result() for task in tasks]
    reckoned = sum(loops) / len(loops) * args.trials
    print(f"{args.teacher} -> {args.student}, {args.trials} trials of {args.epochs} epochs")
    print(describe_machine(machine()))
    rows = []
    for what, result in results.items():
        off = results[what.replace("cache on", "cache off")]
        epochs = result["epochs"]
        read = [epoch["cpu_s"] for epoch in epochs if epoch["cached"] == 100]
        computed = [epoch["cpu_s"] for epoch in epochs if epoch["cached"] == 0]
        rows.append(
            [
                what,
                f"{result['cpu_s']:.0f}",
                f"{result['cpu_s'] / off['cpu_s']:.2f}",
                f"{result['cpu_s'] / reckoned:.3f}",
                f"{result['teacher_passes']:.1f}",
                f"{sum(computed) / len(computed):.1f}" if computed else "-",
                f"{sum(read) / len(read):.1f}" if read else "-",
            ]
        )
    rows.append(["plain loops, reckoned", f"{reckoned:.0f}", "", "1.000", "", "", ""])
    print_table(
        [
            "",
            "CPU-s",
            "to cache off",
            "to plain",
            "teacher epochs",
            "CPU-s of an epoch with the teacher",
            "without",
        ],
        rows,
    )
    write_json(args.json, {"arguments": vars(args), "results": results, "plain_loops": loops})


if __name__ == "__main__":
    main()

"""Wall time of `dcd distill`, as typed, against the same training in a bare loop.

    python -m benchmarks overhead

Both train the same networks on the same images with the same step, threads and validation. The
command adds Ray Train, a journal, a checkpoint every epoch, and MLflow in SQLite, fed while it
trains. Each run is a process of its own and they take turns; time counts from the end of the first
epoch to the end of the last, so that start-up is apart, and start-up is told too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.experiment import digits_experiment
from benchmarks.record import (
    Spread,
    describe_machine,
    machine,
    print_table,
    run_quietly,
    write_json,
)
from dcd_core import (
    Distiller,
    FeatureModel,
    FrozenTeacher,
    Meter,
    MicroBatch,
    Objective,
    build_model,
    crop_flip,
    normalize,
    sample_order,
    train_step,
    use_channels_last_,
)
from orchestrator.data import ImageSet, load_dataset
from orchestrator.experiment_file import load_experiment
from orchestrator.journal import Journal
from orchestrator.storage import Folder


def bare_loop(file: Path) -> list[float]:
    """Train as a short script would; when each epoch ended."""
    experiment = load_experiment(file)
    data, train = experiment.data, experiment.train
    dataset = load_dataset(data)
    assert isinstance(dataset.train, ImageSet) and isinstance(dataset.val, ImageSet)
    images, labels, indices = (
        torch.tensor(values)
        for values in (dataset.train.images, dataset.train.labels, dataset.train.indices)
    )
    held_out, answers = torch.tensor(dataset.val.images), torch.tensor(dataset.val.labels)

    def inputs(some: torch.Tensor) -> torch.Tensor:
        return normalize(some, mean=dataset.mean, std=dataset.std)

    example = inputs(images[:2])
    assert experiment.teacher is not None and experiment.teacher.checkpoint is not None
    torch.manual_seed(experiment.seed)
    student, teacher = (
        FeatureModel(build_model(name, num_classes=10), images_example=example)
        for name in (experiment.student.source, experiment.teacher.source)
    )
    teacher.model.load_state_dict(torch.load(experiment.teacher.checkpoint))
    frozen = FrozenTeacher(teacher, images_example=example)
    use_channels_last_(student, example)
    distiller = Distiller(student, teacher_dim=teacher.feature_dim)
    objective = Objective(
        ce_weight=1.0, kd_weight=1.0, kd_temperature=4.0, dcd_weight=1.0, consistency_weight=0.5
    )
    optimizer = torch.optim.SGD(
        distiller.parameter_groups(lr=0.05, weight_decay=5e-4, scalar_lr_ratio=0.1),
        lr=0.05,
        momentum=0.9,
    )
    ends = []
    for epoch in range(1, train.epochs + 1):
        distiller.train()
        meter = Meter()
        for step, batch in enumerate(sample_order(data.seed, epoch, indices).split(64)):
            augmented = crop_flip(
                images[batch], seed=data.seed, epoch=epoch, indices=indices[batch]
            )
            pixels = inputs(augmented)
            output = frozen(pixels)
            micro = MicroBatch(
                pixels.contiguous(memory_format=torch.channels_last),
                labels[batch],
                output.logits,
                output.features,
            )
            train_step(
                distiller, [micro], objective=objective, optimizer=optimizer, meter=meter, step=step
            )
        losses = meter.result().means
        distiller.eval()
        with torch.no_grad():
            right = sum(
                int((student(inputs(x)).logits.argmax(1) == y).sum())
                for x, y in zip(held_out.split(256), answers.split(256), strict=True)
            )
        ends.append(time.time())
        print(epoch, losses["total"], right / len(answers), file=sys.stderr)
    return ends


def command(file: Path, name: str) -> list[float]:
    """`dcd distill`; when each epoch ended."""
    command = [sys.executable, "-m", "orchestrator", "distill", str(file)]
    run_quietly([*command, "--set", f"name={name}"], file.parent)
    ended = {
        point.step: point.timestamp_ms / 1000
        for point in Journal(Folder(str(file.parent / "runs" / name))).points()
        if point.name == "train/loss"
    }
    return [ended[epoch] for epoch in sorted(ended)]


def bare(file: Path) -> list[float]:
    """The bare loop in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "overhead", "--bare", str(file)]
    ends: list[float] = json.loads(run_quietly(command, Path.cwd()))
    return ends


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", help="where to write the numbers")
    args = parser.parse_args()
    if args.bare is not None:
        print(json.dumps(bare_loop(args.bare)))
        return
    runs: dict[str, list[dict[str, Any]]] = {"dcd distill": [], "bare loop": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = digits_experiment(
            folder,
            teacher=args.teacher,
            student=args.student,
            batch_size=64,
            epochs=args.epochs,
            sections={"train": {"precision": "fp32", "compile": False}},
        )
        file = folder / "experiment.yaml"
        file.write_text(yaml.safe_dump(values))
        for pair in range(args.pairs):
            for what, run in (
                ("dcd distill", lambda pair=pair: command(file, f"run-{pair}")),
                ("bare loop", lambda: bare(file)),
            ):
                started = time.time()
                ends = run()
                runs[what].append(
                    {
                        "training_s": ends[-1] - ends[0],
                        "first_epoch_s": ends[0] - started,
                        "after_s": time.time() - ends[-1],
                    }
                )
    ratios = Spread(
        [
            own["training_s"] / plain["training_s"]
            for own, plain in zip(runs["dcd distill"], runs["bare loop"], strict=True)
        ]
    )
    print(
        f"{args.teacher} -> {args.student}, {args.epochs - 1} epochs, {describe_machine(machine())}"
    )
    print_table(
        ["", "training, s", "until the first epoch ends, s", "after the last, s"],
        [
            [
                what,
                *(
                    Spread([run[key] for run in found]).text(1)
                    for key in ("training_s", "first_epoch_s", "after_s")
                ),
            ]
            for what, found in runs.items()
        ],
    )
    print(f"ratio of training: {ratios.text(3)}")
    write_json(args.json, {"arguments": vars(args), "runs": runs, "ratio": ratios})


if __name__ == "__main__":
    main()

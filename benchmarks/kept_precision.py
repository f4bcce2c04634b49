"""How much the losses change when the teacher's answers are kept in half precision.

    python -m benchmarks kept_precision examples/digits.yaml

One epoch's batches through a student as it starts: the mean of each term with the fp32 teacher's
answers as they are, and rounded to what `teacher_cache.dtype` would keep.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.record import print_table, write_json
from dcd_core import normalize, sample_order
from orchestrator.build import (
    build_distiller,
    build_objective,
    build_recipe,
    example_images,
    feature_layers,
    student_pixels,
)
from orchestrator.data import ImageSet
from orchestrator.errors import UserError
from orchestrator.evaluation import Images
from orchestrator.experiment_file import load_experiment
from orchestrator.frozen_teacher import freeze
from orchestrator.inputs import read_inputs
from orchestrator.reporter import Ranks
from orchestrator.sources import build_teacher
from orchestrator.teacher_cache.rows import DTYPES
from orchestrator.teaching import LiveTeaching


@torch.no_grad()
def mean_losses(file: Path, overrides: list[str]) -> dict[str, dict[str, float]]:
    """Mean of each term over an epoch, by the precision that is kept."""
    experiment = load_experiment(file, overrides)
    inputs = read_inputs(experiment)
    if inputs.teacher is None:
        raise UserError("teacher: one with a checkpoint is needed")
    dataset, teacher = inputs.dataset, inputs.teacher
    if not isinstance(dataset.train, ImageSet):
        raise UserError("data.streaming: images that are held are needed: set it to false")
    network = build_teacher(
        teacher.spec,
        num_classes=teacher.num_classes,
        images_example=example_images(dataset, teacher.pixels),
        feature_layer=feature_layers(experiment.objective)["teacher"],
        state=teacher.state,
    )
    frozen = freeze(network, dataset, teacher.pixels, precision=torch.float32, ranks=Ranks())
    live = LiveTeaching(frozen, pixels=teacher.pixels)
    distiller = build_distiller(
        inputs.student,
        inputs.teacher_dim,
        experiment.objective,
        micro_batch_size=experiment.train.micro_batch_size,
        seed=experiment.seed,
    ).train()
    objective = build_objective(experiment.objective)(1)
    pixels = student_pixels(experiment.data, dataset)
    recipe = build_recipe(experiment, pixels, precision=torch.float32, channels_last=False)
    images, labels, indices = Images.of(dataset.train)
    sums: dict[str, dict[str, float]] = {name: {} for name in DTYPES}
    order = sample_order(recipe.data_seed, 1, indices)
    for batch in order.split(recipe.batch_size):
        augmented = recipe.augment(images[batch], indices[batch], 1)
        student_images = normalize(augmented, mean=pixels.mean, std=pixels.std)
        answers = live.run(augmented)
        for name, dtype in DTYPES.items():
            logits = answers.logits.to(dtype).float()
            features = answers.features.to(dtype).float()
            output = distiller(
                student_images, features if distiller.teacher_head is not None else None
            )
            losses = objective(output, labels=labels[batch], teacher_logits=logits)
            for term, value in {"total": losses.total, **losses.terms}.items():
                sums[name][term] = sums[name].get(term, 0.0) + value.item() * len(batch)
    return {
        name: {term: value / len(order) for term, value in terms.items()}
        for name, terms in sums.items()
    }


HALF = ("bf16", "fp16")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--json", help="where to write the numbers")
    args = parser.parse_args()
    means = mean_losses(args.experiment, args.set)
    exact = means["fp32"]
    rows = [
        [term, f"{exact[term]:.6f}"]
        + [f"{(means[name][term] - exact[term]) / (exact[term] or 1):+.1e}" for name in HALF]
        for term in exact
    ]
    print_table(["term", "fp32", "bf16, relative difference", "fp16"], rows)
    write_json(args.json, {"means": means})


if __name__ == "__main__":
    main()

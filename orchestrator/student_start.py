"""The student as it starts: at random, or from weights of its own."""

from __future__ import annotations

from dcd_core import FeatureModel
from orchestrator.build import example_images, feature_layers
from orchestrator.data import Dataset
from orchestrator.evaluation import PixelStatistics
from orchestrator.origins import Start, find_origin, without_files
from orchestrator.sources import build_student, weights_facts
from orchestrator.spec import Experiment


def starting_student(
    experiment: Experiment, dataset: Dataset, pixels: PixelStatistics, notes: list[str]
) -> tuple[FeatureModel, Start | None]:
    """Build the student, on the CPU.

    Args:
        experiment: whose student it is.
        dataset: the images.
        pixels: what it sees, unless it starts from weights that were trained on something else and
            `data.normalize` is not given.
        notes: what the user should know is added to them.

    Returns:
        The student, and where it starts from when it has weights of its own.

    Raises:
        UserError: it cannot be built.
    """
    spec = experiment.student
    origin = find_origin(spec, tracking_uri=experiment.tracking.uri)
    trained_on = origin.pixels
    if trained_on is not None and len(trained_on.mean) != len(pixels.mean):
        trained_on = None  # of other channels; building it says whether it can take these
    sees = pixels if experiment.data.normalize else trained_on or pixels
    student = build_student(
        origin.spec,
        num_classes=dataset.num_classes,
        images_example=example_images(dataset, sees),
        seed=experiment.seed,
        feature_layer=feature_layers(experiment.objective)["student"],
        state=origin.state,
    )
    if not origin.tags:
        return student, None
    if spec.weights is not None:
        classes = weights_facts(spec.source, spec.weights).num_classes
        if classes != dataset.num_classes:
            notes.append(
                f"student.weights: {spec.weights} has {classes} classes and the data "
                f"{dataset.num_classes}, so the classifier is replaced by a new one"
            )
    if trained_on is not None and experiment.data.normalize is None:
        notes.append(describe_pixels("student", trained_on))
    tags = {f"student.{key}": value for key, value in origin.tags.items()}
    return student, Start(spec, without_files(origin.spec), trained_on, tags)


def describe_pixels(role: str, pixels: PixelStatistics) -> str:
    """What a network with weights of its own sees, in one line."""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in pixels)
    setting = "data.normalize" if role == "student" else "teacher.normalize"
    return (
        f"the {role} sees images as its weights were trained on them, mean ({mean}), std ({std}): "
        f"{setting} changes that"
    )

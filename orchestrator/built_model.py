"""A model that was found, built for images, and the tags that link to its run."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from orchestrator.build import student_pixels
from orchestrator.checkpoint_file import load_weights, read_state_dict
from orchestrator.data import Dataset
from orchestrator.evaluation import PixelStatistics
from orchestrator.given_model import MLFLOW, Given, Source
from orchestrator.inputs import known_teacher
from orchestrator.mlflow_run import KEY_TAG
from orchestrator.places import Places
from orchestrator.sources import build_network
from orchestrator.spec import Experiment
from orchestrator.student_model import rebuild_student
from orchestrator.tracking_files import REQUEST, STATE


class Classifier(NamedTuple):
    """A network that is ready to be asked."""

    name: str
    network: nn.Module
    """In eval mode on the CPU; normalised images (B, C, H, W) -> logits (B, K)."""
    pixels: PixelStatistics
    """What it sees."""
    origin: dict[str, str]
    """Where its weights come from, as tags."""
    class_order: tuple[int, ...] | None = None
    """(K,) its class for each of the data's; None for the same order."""


def build_classifier(given: Given, images: Experiment, dataset: Dataset) -> Classifier:
    """Build a network with its weights, for images.

    Args:
        given: what to build.
        images: the experiment whose `data` section the images come from.
        dataset: the images.

    Raises:
        UserError: it cannot be built, or its weights do not fit.
    """
    pixels = student_pixels(images.data, dataset)
    if given.student is not None:
        about = given.student.package
        network = rebuild_student(given.student, where=given.student_at or given.name)
        own = PixelStatistics(about.mean, about.std)
        return Classifier(given.name, network, own, {"source": about.source})
    if given.source is not None:
        network = _from_checkpoint(given.source, dataset)
        origin = {"source": given.source.source, "checkpoint": given.source.checkpoint}
        return Classifier(given.name, network, pixels, origin)
    assert given.experiment is not None and given.experiment.teacher is not None
    notes: list[str] = []  # told when the teacher was first used
    teacher, features = known_teacher(given.experiment, given.experiment.teacher, dataset, notes)
    origin = {key.removeprefix("teacher."): value for key, value in teacher.lineage.items()}
    return Classifier(given.name, features.model.eval(), teacher.pixels, origin)


def model_tags(given: Given, classifier: Classifier, *, places: Places) -> dict[str, str]:
    """Tags that link what is measured of a model to the model's own run; none with tracking off.

    Args:
        given: the model.
        classifier: the same, built.
        places: where MLflow is.
    """
    if places.tracking_uri is None:
        return {}
    tags = {"dcd.student": given.name}
    tags |= {f"dcd.student.{key}": value for key, value in classifier.origin.items()}
    if given.folder is not None:
        tags["dcd.student.run_folder"] = given.folder.location
        request = given.folder.read_json(REQUEST)
        if request is not None:
            # Known also while the server does not have the run yet, and so no id of it.
            tags[f"dcd.student.{KEY_TAG.removeprefix('dcd.')}"] = request["key"]
            run_id = (given.folder.read_json(STATE) or {}).get("run_id")
            if run_id is not None:
                tags["dcd.student.run_id"] = run_id
    elif given.student is not None and given.student_at is not None:
        asked = given.student_at if given.student_at.startswith(MLFLOW) else None
        model = given.student.model_uri or asked
        known = {"model": model, "run_id": given.student.run_id}
        tags |= {f"dcd.student.{key}": value for key, value in known.items() if value is not None}
    return tags


def _from_checkpoint(given: Source, dataset: Dataset) -> nn.Module:
    network = build_network(
        given.source,
        args={},
        num_classes=given.num_classes or dataset.num_classes,
        in_channels=dataset.train.shape[0],
    )
    load_weights(network, read_state_dict(given.checkpoint), where=given.checkpoint)
    return network.eval()

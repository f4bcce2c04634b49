"""Whether a student can be trained on the images in batches of the experiment's size."""

from __future__ import annotations

import copy
import math

from dcd_core import FeatureModel, shares
from orchestrator.build import example_images, feature_layers, student_pixels
from orchestrator.data import Dataset, StreamedSet
from orchestrator.error_text import cause
from orchestrator.errors import UserError
from orchestrator.sources import build_student
from orchestrator.spec import Experiment


def check_student(experiment: Experiment, dataset: Dataset) -> FeatureModel:
    """Build a student of other settings than those that were read, and run two images through it.

    Raises:
        UserError: it cannot be built, or cannot train in such batches.
    """
    student = build_student(
        experiment.student,
        num_classes=dataset.num_classes,
        images_example=example_images(dataset, student_pixels(experiment.data, dataset)),
        seed=experiment.seed,
        feature_layer=feature_layers(experiment.objective)["student"],
        state=None,
    )
    check_small_batches(experiment, student, dataset)
    return student


def check_small_batches(experiment: Experiment, student: FeatureModel, dataset: Dataset) -> None:
    """Refuse a window of streamed images that is smaller than a batch, and a last batch of an epoch
    that the network cannot run on.

    BatchNorm refuses a single value per channel; some networks refuse an empty batch, which a
    worker gets whose share is empty while BatchNorm is synchronised.
    """
    workers, train = max(experiment.scaling.workers, 1), experiment.train
    micro = train.micro_batch_size
    if isinstance(dataset.train, StreamedSet) and dataset.train.window < micro:
        needed = math.ceil(2000 * micro * dataset.train.form.num_bytes / 2**30) / 1000
        raise UserError(
            f"data.memory_gib: half of {experiment.data.memory_gib:g} GiB holds "
            f"{dataset.train.window:,} images, and a batch has {micro}: give at least {needed:g}"
        )
    last = len(dataset.train.labels) % train.batch_size % micro or micro
    counts = shares(last, workers)
    images = example_images(dataset, student_pixels(experiment.data, dataset))
    together = experiment.scaling.synchronised
    smallest = last if together else min(count for count in counts if count)
    empty = together and 0 in counts
    network = copy.deepcopy(student).train()
    for size in ({0} if empty else set()) | ({1} if smallest == 1 else set()):
        if size == 0:
            network.eval()  # the collectives of synchronised BatchNorm do without rows
        try:
            network(images[:size])
        except Exception as error:
            raise UserError(
                f"student: {experiment.student.source} cannot run on a batch of {size} images, "
                f"which the end of an epoch brings ({last} are left over for {workers} workers; "
                f"{cause(error)}): change train.batch_size or data.limit"
            ) from error

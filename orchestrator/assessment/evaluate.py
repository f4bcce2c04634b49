"""From a model to all that `dcd evaluate` tells of it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from orchestrator.assessment.answers import answer
from orchestrator.assessment.costs import Costs, measure_costs
from orchestrator.assessment.evaluation import Evaluation, Judged
from orchestrator.assessment.files import evaluation_files, evaluation_metrics
from orchestrator.assessment.metrics import measure_agreement, measure_quality
from orchestrator.assessment.report import describe_evaluation
from orchestrator.built_model import Classifier, build_classifier, model_tags
from orchestrator.data import Dataset, Split, describe_counts, load_dataset
from orchestrator.errors import UserError
from orchestrator.given_images import (
    SplitName,
    asked_tracking,
    check_classes,
    check_images,
    choose_split,
    images_for,
    match_classes,
    unknown_pixels,
)
from orchestrator.given_model import Given, find_model, teacher_of
from orchestrator.places import Places
from orchestrator.progress import Display
from orchestrator.results_folder import (
    Measurement,
    data_name,
    leave_results,
    measurement_places,
    send,
    where_results_are,
)
from orchestrator.spec import Experiment
from orchestrator.storage import Folder, check_writable
from orchestrator.student_model import RawImageClassifier


class Request(NamedTuple):
    """What was asked for."""

    model: str
    source: str | None = None
    """Of the network, when the model is a checkpoint."""
    num_classes: int | None = None
    data: str | None = None
    """None for the model's own images."""
    overrides: tuple[str, ...] = ()
    split: SplitName = "test"
    teacher: str | None = None
    """None for the one that the student has learned from."""
    storage: str | None = None


class Outcome(NamedTuple):
    """What an evaluation leaves."""

    evaluation: Evaluation
    folder: Folder
    where: list[str]
    """Lines that say where all of it is."""


def evaluate_model(request: Request, *, display: Display | None = None) -> Outcome:
    """Measure a model, and write down what was found.

    Raises:
        UserError: the model or the images are not there, or do not fit together; nothing is
            written.
        Interrupted: a signal came; nothing is written unless `run` names the folder.
    """
    display = display or Display()
    uri = asked_tracking(request.overrides)
    given = find_model(
        request.model,
        storage=request.storage,
        source=request.source,
        num_classes=request.num_classes,
        tracking_uri=uri,
    )
    images = images_for(
        given, data=request.data, overrides=request.overrides, storage=request.storage
    )
    places = measurement_places(images, given.folder)
    check_writable(places.storage, setting="storage.path")
    with display.step(f"{given.name}: reading images"):
        dataset = load_dataset(images.data)
    split = choose_split(dataset, request.split)
    classifier = build_classifier(given, images, dataset)
    check_classes(given.name, check_images(given, classifier, dataset), dataset)
    tags = model_tags(given, classifier, places=places)
    notes = unknown_pixels(given, images)
    classifier = _matched(classifier, _class_names(given), dataset, notes)
    teacher = _teacher(request, given, classifier, images, dataset, places, notes=notes)
    with display.step(f"{given.name}: {len(split):,} images of the {request.split} split"):
        evaluation = _evaluate(request, classifier, teacher, images, dataset, split, notes=notes)
    folder = leave_results(
        _measurement(request, given, evaluation, images, tags=tags),
        images=images,
        dataset=dataset,
        places=places,
    )
    report = send(folder, places, display=display)
    return Outcome(evaluation, folder, where_results_are(folder, images, places, report))


def describe_outcome(outcome: Outcome) -> str:
    """The result as text, and where to find what it left."""
    return "\n".join([describe_evaluation(outcome.evaluation), *outcome.where])


def _teacher(
    request: Request,
    given: Given,
    student: Classifier,
    images: Experiment,
    dataset: Dataset,
    places: Places,
    *,
    notes: list[str],
) -> Classifier | None:
    """The teacher that was asked for, or the student's own where that can be had."""
    try:
        if request.teacher is not None:
            found = find_model(
                request.teacher, storage=request.storage, tracking_uri=places.tracking_uri
            )
        else:
            own = teacher_of(given, storage=request.storage)
            if own is None:
                return None
            found = own
        teacher = build_classifier(found, images, dataset)
        check_classes(f"its teacher {found.name}", check_images(found, teacher, dataset), dataset)
        if request.teacher is None:
            _check_same_weights(given, teacher)
        names = _class_names(found)
        if names is None and request.teacher is None:  # its student learned from it class by class
            return teacher._replace(class_order=student.class_order)
        if names is None and student.class_order is not None:
            notes.append(f"{found.name}: has no names of its classes: matched by their number")
        return _matched(teacher, names, dataset, notes)
    except UserError as error:
        if request.teacher is not None:
            raise UserError(f"--teacher: {error}") from error
        notes.append(f"not compared with its teacher: {error}")
        return None


def _class_names(given: Given) -> tuple[str, ...] | None:
    return given.package.class_names if given.package else None


def _matched(
    classifier: Classifier, names: tuple[str, ...] | None, dataset: Dataset, notes: list[str]
) -> Classifier:
    """A classifier that knows which of its classes are the data's; the notes get what was done."""
    order, note = match_classes(classifier.name, names, dataset.class_names)
    if note is not None:
        notes.append(note)
    return classifier._replace(class_order=order)


def _check_same_weights(given: Given, teacher: Classifier) -> None:
    """Refuse other weights than those that the student has learned from."""
    before = given.package.lineage.get("teacher.sha256") if given.package else None
    now = teacher.origin.get("sha256")
    if before is not None and now is not None and before != now:
        raise UserError(
            f"{teacher.name} has other weights now (fingerprint {now}) than when the student "
            f"learned from it ({before})"
        )


def _evaluate(
    request: Request,
    classifier: Classifier,
    teacher: Classifier | None,
    images: Experiment,
    dataset: Dataset,
    split: Split,
    *,
    notes: list[str],
) -> Evaluation:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = torch.from_numpy(split.labels.copy())  # (M,)
    networks = [classifier] if teacher is None else [classifier, teacher]
    logits = [
        answer(
            model.network.to(device),
            split,
            pixels=model.pixels,
            crop_size=dataset.crop_size,
            device=device,
            class_order=model.class_order,
        )
        for model in networks
    ]
    judged = [
        Judged(model.name, measure_quality(answers, labels), _costs(model, dataset, device))
        for model, answers in zip(networks, logits, strict=True)
    ]
    return Evaluation(
        model=judged[0],
        teacher=judged[1] if teacher is not None else None,
        agreement=measure_agreement(*logits) if teacher is not None else None,
        data=f"{data_name(images)}: {describe_counts(dataset)}",
        fingerprint=dataset.fingerprint,
        split=request.split,
        class_names=dataset.class_names,
        notes=tuple(notes),
    )


def _costs(model: Classifier, dataset: Dataset, device: torch.device) -> Costs:
    whole = RawImageClassifier(model.network, mean=model.pixels.mean, std=model.pixels.std)
    return measure_costs(whole.eval().to(device), dataset.input_shape, device=device)


def _measurement(
    request: Request,
    given: Given,
    evaluation: Evaluation,
    images: Experiment,
    *,
    tags: dict[str, str],
) -> Measurement:
    name = f"{given.name}-on-{data_name(images)}-{request.split}"
    return Measurement(
        name=name,
        role="evaluation",
        note=f"**{given.name}** on the {request.split} split of {evaluation.data}.",
        files=evaluation_files(evaluation),
        params={"model": request.model, "split": request.split},
        tags=tags,
        metrics=evaluation_metrics(evaluation),
        history={},
    )

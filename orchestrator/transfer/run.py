"""From models to linear probes on other images: all of `dcd transfer` but its options."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from dcd_core import FeatureModel
from orchestrator.build import example_images
from orchestrator.built_model import Classifier, build_classifier, model_tags
from orchestrator.data import Dataset, Split, describe_counts, load_dataset
from orchestrator.errors import UserError
from orchestrator.given_images import (
    asked_tracking,
    check_images,
    choose_split,
    images_for,
    unknown_pixels,
)
from orchestrator.given_model import Given, find_model
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
from orchestrator.transfer.features import extract_features
from orchestrator.transfer.probe import Labelled, ProbeSettings, top_k, train_probe
from orchestrator.transfer.result import (
    Score,
    Transfer,
    describe_transfers,
    transfer_files,
    transfer_history,
    transfer_metrics,
)


class Request(NamedTuple):
    """What was asked for."""

    models: tuple[str, ...]
    data: str
    overrides: tuple[str, ...] = ()
    settings: ProbeSettings = ProbeSettings()
    seeds: int = 1
    source: str | None = None
    """Of the network, when the models are checkpoints."""
    num_classes: int | None = None
    feature_layer: str | None = None
    """None for the input of the classifier."""
    storage: str | None = None


class Left(NamedTuple):
    """What the probes of one model leave."""

    transfer: Transfer
    folder: Folder
    where: list[str]
    """Lines that say where all of it is."""


class _Backbone(NamedTuple):
    """A model with the images as it takes them."""

    given: Given
    classifier: Classifier
    network: FeatureModel
    images: Experiment
    dataset: Dataset
    places: Places
    tags: dict[str, str]
    """That link to its run."""


def transfer_models(request: Request, *, display: Display | None = None) -> list[Left]:
    """Train probes on the features of each model; each is written down when it is done.

    Raises:
        UserError: a model or the images are not there, or do not fit together; nothing is written.
        Interrupted: a signal came; nothing is written of the model that it met.
    """
    display = display or Display()
    lr = request.settings.lr
    if not 0 < lr < math.inf:
        raise UserError(f"--lr {lr:g}: the probes' learning rate must be finite and above 0")
    backbones = _read(request, display)
    return [_transfer(request, backbone, display) for backbone in backbones]


def describe_left(left: list[Left]) -> str:
    """The result as text, and where to find what it left."""
    places = dict.fromkeys(line for one in left for line in one.where)
    return "\n".join([describe_transfers([one.transfer for one in left]), "", *places])


def _read(request: Request, display: Display) -> list[_Backbone]:
    """All models, checked before any is worked on."""
    uri = asked_tracking(request.overrides)
    datasets: dict[str, Dataset] = {}
    backbones: list[_Backbone] = []
    for model in request.models:
        given = find_model(
            model,
            storage=request.storage,
            source=request.source,
            num_classes=request.num_classes,
            tracking_uri=uri,
        )
        if given.name in [backbone.given.name for backbone in backbones]:
            raise UserError(f"{given.name} is given twice: name each model once")
        images = images_for(
            given, data=request.data, overrides=request.overrides, storage=request.storage
        )
        places = measurement_places(images, given.folder)
        check_writable(places.storage, setting="storage.path")
        section = images.data.model_dump_json()
        if section not in datasets:  # models of one size of images share them
            with display.step(f"{given.name}: reading images"):
                datasets[section] = load_dataset(images.data)
        dataset = datasets[section]
        classifier = build_classifier(given, images, dataset)
        check_images(given, classifier, dataset)
        network = _features_of(classifier, dataset, request.feature_layer)
        tags = model_tags(given, classifier, places=places)
        backbones.append(_Backbone(given, classifier, network, images, dataset, places, tags))
    _check_same_images(backbones)
    return backbones


def _features_of(
    classifier: Classifier, dataset: Dataset, feature_layer: str | None
) -> FeatureModel:
    try:
        return FeatureModel(
            classifier.network,
            images_example=example_images(dataset, classifier.pixels),
            feature_layer=feature_layer,
        ).eval()
    except ValueError as error:
        text = str(error).replace("set feature_layer", "give --feature-layer")
        raise UserError(f"{classifier.name}: {text}") from error


def _check_same_images(backbones: list[_Backbone]) -> None:
    """Differences are paired, so all must have been given the same images, at whatever size."""
    first = backbones[0].dataset
    for backbone in backbones[1:]:
        pairs = zip(_splits(first), _splits(backbone.dataset), strict=True)
        if not all(np.array_equal(a.indices, b.indices) for a, b in pairs):
            raise UserError(
                f"{backbone.given.name} gets other images than {backbones[0].given.name}, because "
                "some cannot be decoded: remove them, or transfer the models one by one"
            )


def _splits(dataset: Dataset) -> list[Split]:
    return [dataset.train, dataset.val, choose_split(dataset, "test")]


def _transfer(request: Request, backbone: _Backbone, display: Display) -> Left:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, dataset, pixels = backbone.given.name, backbone.dataset, backbone.classifier.pixels
    network = backbone.network.to(device)
    with display.step(f"{name}: features of {describe_counts(dataset)}"):
        features = [
            extract_features(
                network, split, pixels=pixels, crop_size=dataset.crop_size, device=device
            )
            for split in _splits(dataset)
        ]
    network.cpu()
    scores = []
    for seed in range(request.seeds):
        with display.step(f"{name}: probe {seed + 1} of {request.seeds}"):
            scores.append(_score(request.settings, features, dataset.num_classes, seed))
    transfer = Transfer(
        name=name,
        feature_dim=backbone.network.feature_dim,
        scores=tuple(scores),
        data=f"{data_name(backbone.images)}: {describe_counts(dataset)}",
        fingerprint=dataset.fingerprint,
        class_names=dataset.class_names,
        image_shape=dataset.input_shape,
        mean=pixels.mean,
        std=pixels.std,
        settings=request.settings,
        feature_layer=request.feature_layer,
        notes=tuple(unknown_pixels(backbone.given, backbone.images)),
    )
    folder = leave_results(
        _measurement(request, backbone, transfer),
        images=backbone.images,
        dataset=dataset,
        places=backbone.places,
    )
    report = send(folder, backbone.places, display=display)
    where = where_results_are(folder, backbone.images, backbone.places, report)
    return Left(transfer, folder, where)


def _score(settings: ProbeSettings, features: list[Labelled], num_classes: int, seed: int) -> Score:
    train, val, test = features
    probe = train_probe(train, val, num_classes=num_classes, settings=settings, seed=seed)
    return Score(
        seed=seed,
        probe=probe,
        val_top1=top_k(probe.best, val, k=1),
        test_top1=top_k(probe.best, test, k=1),
        test_top5=top_k(probe.best, test, k=5) if num_classes > 5 else None,
        test_top1_last=top_k(probe.last, test, k=1),
    )


def _measurement(request: Request, backbone: _Backbone, transfer: Transfer) -> Measurement:
    given = backbone.given
    settings = {f"probe.{key}": str(value) for key, value in request.settings._asdict().items()}
    return Measurement(
        name=f"{given.name}-to-{data_name(backbone.images)}",
        role="transfer",
        note=f"Linear probes on the frozen features of **{given.name}**: {transfer.data}.",
        files=transfer_files(transfer),
        params={"model": given.name, "seeds": str(request.seeds), **settings},
        tags=backbone.tags,
        metrics=transfer_metrics(transfer),
        history=transfer_history(transfer),
    )

"""The labelled images that a command measures a model on, and whether the two fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dcd_core import normalize
from orchestrator.build import example_images
from orchestrator.built_model import Classifier
from orchestrator.data import Dataset, Split, StreamedSet
from orchestrator.errors import UserError
from orchestrator.evaluation import PixelStatistics, as_evaluated
from orchestrator.experiment_file import (
    apply_overrides,
    build_experiment,
    parse_override,
    read_yaml,
)
from orchestrator.given_model import YAML, Given
from orchestrator.image_fit import check_forward
from orchestrator.places import tracking_place
from orchestrator.reporter import Ranks
from orchestrator.spec import Experiment
from orchestrator.streaming.opening import open_split

SplitName = Literal["train", "val", "test"]

_SECTIONS = ("data", "tracking")
# That of the scores in training, because kernels of another batch size may round otherwise.
_BATCH = 256
_MAX_NAMES = 5


def images_for(
    given: Given,
    *,
    data: str | None,
    overrides: Sequence[str] = (),
    storage: str | None = None,
) -> Experiment:
    """An experiment whose `data` are the images, with the places to leave results in.

    Images that are not the model's own are resized to those it was trained on, and grey ones get
    three channels where it has three, unless the user says how large they are to be.

    Args:
        given: the model.
        data: a YAML file with a `data` section, or a source by its name; None for the model's own.
        overrides: ``data.field=value`` and the like.
        storage: folder or URI of the runs, when not the default.

    Raises:
        UserError: the images are not known, or something of this is wrong.
    """
    _check_sections(overrides)
    values: dict[str, Any] = {"name": "images", "objective": {"method": "ce"}}
    if given.experiment is not None:
        own = given.experiment.model_dump(mode="json")
        values["tracking"] = own["tracking"] | {"register": None}
        if given.package is None:  # a run lies where it was found, wherever it was made
            values["storage"] = own["storage"]
    if data is not None:
        values["data"], where = _data_section(data)
    elif given.experiment is not None:
        values["data"], where = own["data"], f"the images of {given.name}"
    else:
        raise UserError(f"{given.name}: nothing here says what images it was made for: give --data")
    apply_overrides(values, overrides)
    if storage is not None:
        values["storage"] = {"path": storage}
    if data is not None:
        _fit_to(given, values["data"])
    return build_experiment(values, where=where)


def asked_tracking(overrides: Sequence[str]) -> str | None:
    """The tracking URI among overrides, where `mlflow:` models are looked for too."""
    uri = dict(map(parse_override, overrides)).get("tracking.uri")
    return tracking_place(uri)[0] if uri is not None else None


def choose_split(dataset: Dataset, split: SplitName) -> Split:
    """One of the splits.

    Raises:
        UserError: there is no such split, or which of its images can be decoded is not known yet.
    """
    chosen: Split | None = getattr(dataset, split)
    if chosen is None:
        raise UserError(f"--split {split}: the data has none: choose train or val")
    if isinstance(chosen, StreamedSet) and chosen.on_error == "skip":
        raise UserError(
            "data.on_error is skip, and the images are streamed (data.streaming): what is measured "
            "here needs all of them: set data.on_error: fail, or data.streaming: false"
        )
    return chosen


def network_inputs(
    split: Split, *, pixels: PixelStatistics, crop_size: int | None, device: torch.device
) -> Iterator[Tensor]:
    """A split's images as a network gets them, without augmentation, (B, C, H, W) on the device.

    Args:
        split: the images.
        pixels: what the network sees.
        crop_size: side of the square from the centre that it sees; None for whole images.
        device: where it runs.
    """
    alone = Ranks(device=device)
    for images, _ in open_split(split, alone, on_ray=False).batches(alone, _BATCH):
        seen = as_evaluated(images.to(device), crop_size)
        yield normalize(seen, mean=pixels.mean, std=pixels.std)


def check_images(given: Given, classifier: Classifier, dataset: Dataset) -> int:
    """Refuse images that the network cannot take; the number of classes that it tells apart.

    Raises:
        UserError: the channels differ, the network fails on them, or it gives no logits.
    """
    channels, wanted = dataset.train.shape[0], len(classifier.pixels.mean)
    if channels != wanted:
        raise UserError(
            f"{given.name} takes images of {wanted} {_plural(wanted, 'channel')} and these have "
            f"{channels}: use other images"
        )
    example = example_images(dataset, classifier.pixels)
    check_forward(classifier.network, example, source=given.name, args={}, weights=None)
    with torch.no_grad():
        logits = classifier.network(example)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise UserError(f"{given.name} gives no logits (images, classes): it is no classifier")
    return logits.shape[1]


def check_classes(name: str, num_classes: int, dataset: Dataset) -> None:
    """Refuse a classifier of other classes than the data's.

    Raises:
        UserError: their numbers differ.
    """
    if num_classes != dataset.num_classes:
        raise UserError(
            f"{name} tells {num_classes} classes apart and the data has {dataset.num_classes}: "
            "evaluate it on images of its own classes, or see with `dcd transfer` what its "
            "features are worth on these"
        )


def match_classes(
    name: str, trained: Sequence[str] | None, found: Sequence[str]
) -> tuple[tuple[int, ...] | None, str | None]:
    """Which of a classifier's classes are the data's.

    Classes of the same names are matched by them. Names that have nothing in common, such as
    numbers and words, say nothing: there classes are matched by their number.

    Args:
        name: of the classifier.
        trained: names of its K classes; None where they are not known.
        found: names of the data's K classes.

    Returns:
        (K,) the classifier's class for each of the data's, None for the same order; and a note on
        what was done, where the names or their order differ.

    Raises:
        UserError: some names are the same and others not, or classes share a name.
    """
    if trained is None or tuple(trained) == tuple(found):
        return None, None
    number, (was, now) = next(
        (n, pair) for n, pair in enumerate(zip(trained, found, strict=True)) if pair[0] != pair[1]
    )
    differs = f"class {number} is {now!r} in the data and was {was!r} in training"
    if not set(trained) & set(found):
        return None, f"{name}: {differs}: classes are matched by their number"
    for names, where in ((trained, "in training"), (found, "in the data")):
        if len(set(names)) < len(names):
            twice = next(each for each in names if list(names).count(each) > 1)
            raise UserError(
                f"{name}: {differs}, and several classes {where} are called {twice!r}, so they "
                "cannot be matched by name: give images with the classes in the order of training"
            )
    if set(trained) != set(found):
        raise UserError(
            f"{name} was trained on other classes than the data's: "
            f"{_some(set(trained) - set(found))} only in training, "
            f"{_some(set(found) - set(trained))} only in the data: give images of the same "
            "classes, under the same names"
        )
    order = tuple(list(trained).index(each) for each in found)
    return order, f"{name}: {differs}: classes are matched by their name"


def unknown_pixels(given: Given, images: Experiment) -> list[str]:
    """A note where nothing tells what pixels a model was trained on."""
    if given.source is None or images.data.normalize is not None:
        return []
    return [
        "normalisation measured on these images: set data.normalize to what "
        f"{given.name} was trained with"
    ]


def _check_sections(overrides: Sequence[str]) -> None:
    for override in overrides:
        path, _ = parse_override(override)
        if path.split(".")[0] not in _SECTIONS:
            raise UserError(
                f"--set {override}: only the sections {' and '.join(_SECTIONS)} matter here, as "
                "nothing of the model is trained"
            )


def _data_section(data: str) -> tuple[dict[str, Any], str]:
    """The section's values, and where they come from."""
    if not data.endswith(YAML):
        return {"source": data}, f"--data {data}"
    values = read_yaml(Path(data))
    section = values.get("data")
    if not isinstance(section, dict):
        raise UserError(f"--data {data}: has no data section")
    return dict(section), data


def _fit_to(given: Given, data: dict[str, Any]) -> None:
    if given.image_size is not None and data.get("resize") is None:
        data["resize"] = list(given.image_size)
    if given.in_channels == 3 and "grey_to_rgb" not in data:
        data["grey_to_rgb"] = True


def _some(names: set[str]) -> str:
    listed = ", ".join(map(repr, sorted(names)[:_MAX_NAMES]))
    return listed + (", …" if len(names) > _MAX_NAMES else "")


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"

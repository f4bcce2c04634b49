"""A student as a package: what rebuilds it as an nn.Module, without pickle.

A package is a folder with ``weights.safetensors`` and ``source.json``, which names the network, its
arguments and the normalisation of its images. It lies in the run's folder under ``student/`` and
travels inside the MLflow model.

Shape letters: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from orchestrator.checkpoint_file import load_weights
from orchestrator.errors import UserError
from orchestrator.sources import build_network
from orchestrator.storage import Folder
from orchestrator.tracking_files import STATE

SOURCE_FILE = "source.json"
WEIGHTS_FILE = "weights.safetensors"


class Package(NamedTuple):
    """All about a student but its weights."""

    source: str
    """What `build_network` takes."""
    args: dict[str, Any]
    """Keyword arguments of the source."""
    num_classes: int
    in_channels: int
    mean: tuple[float, ...]
    """Per channel, of pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    class_names: tuple[str, ...] | None
    metrics: dict[str, float]
    """What it scored, by metric name."""
    lineage: dict[str, str]
    """Where it comes from: ``data.fingerprint``, ``data.split_seed``, the teacher."""


class Student(NamedTuple):
    """A student that has been trained, and where."""

    package: Package
    state: dict[str, Tensor]
    """Its weights, on the CPU."""
    run_id: str | None
    """MLflow's id of the run that has trained it; None when it is not in MLflow."""
    model_uri: str | None
    """``models:/m-…`` of the model in MLflow that it was read from."""


class RawImageClassifier(nn.Module):
    """A classifier of raw images: the normalisation is inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Args:
        network: normalised images float (B, C, H, W) -> logits (B, K).
        mean: per channel, of pixels scaled to [0, 1].
        std: the same.
        """
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: uint8 (B, C, H, W).

        Returns:
            Logits, float32 (B, K).
        """
        pixels = images.to(self.mean.dtype) / 255
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits.float()


def save_package(
    folder: Folder,
    *,
    state_dict: Mapping[str, Tensor],
    network: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    image_shape: tuple[int, int, int],
    class_names: Sequence[str] | None,
    metrics: Mapping[str, float],
    lineage: Mapping[str, str],
) -> None:
    """Write a package.

    Args:
        folder: the package's own folder.
        state_dict: the classifier's weights.
        network: what rebuilds it: ``source``, ``args``, ``num_classes``, ``in_channels``.
        mean: per channel, of pixels scaled to [0, 1].
        std: the same.
        image_shape: (C, H, W).
        class_names: names of the K classes, where they have any.
        metrics: what it scored, by metric name.
        lineage: where it comes from.
    """
    # A copy of each tensor: safetensors refuses tied ones, which share memory.
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in state_dict.items()}
    weights = save_tensors(tensors)
    folder.write(WEIGHTS_FILE, weights)
    folder.write_json(
        SOURCE_FILE,
        {
            "network": {
                "source": network["source"],
                "args": dict(network["args"]),
                "num_classes": network["num_classes"],
                "in_channels": network["in_channels"],
            },
            "normalize": {"mean": list(mean), "std": list(std)},
            "image_shape": list(image_shape),
            "class_names": None if class_names is None else list(class_names),
            "metrics": dict(metrics),
            "lineage": dict(lineage),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        },
    )


def load_student(
    location: str, *, with_normalization: bool = False, tracking_uri: str | None = None
) -> nn.Module:
    """Rebuild a student, in eval mode on the CPU.

    Args:
        location: a run's folder, a package's folder, or an MLflow model: ``models:/name@alias``,
            ``models:/m-…``, ``runs:/<id>/student``, with or without ``mlflow:`` before it.
        with_normalization: take raw images uint8 (B, C, H, W) instead of normalised ones.
        tracking_uri: where MLflow is, when not where MLflow itself or the defaults say.

    Returns:
        Images (B, C, H, W) -> logits (B, K).

    Raises:
        UserError: there is no student, or it cannot be rebuilt.
    """
    student = read_student(location, tracking_uri=tracking_uri)
    network, package = rebuild_student(student, where=location), student.package
    if with_normalization:
        network = RawImageClassifier(network, mean=package.mean, std=package.std)
    return network.eval()


def rebuild_student(student: Student, *, where: str) -> nn.Module:
    """Rebuild a student that was read, in eval mode on the CPU.

    Args:
        student: what was read.
        where: its location, for messages.

    Returns:
        Normalised images (B, C, H, W) -> logits (B, K).

    Raises:
        UserError: it cannot be rebuilt.
    """
    package = student.package
    network = build_network(
        package.source,
        args=package.args,
        num_classes=package.num_classes,
        in_channels=package.in_channels,
    )
    load_weights(network, student.state, where=where)
    return network.eval()


def read_student(location: str, *, tracking_uri: str | None = None) -> Student:
    """All about a student, from one look at its place, which an alias may leave at any time.

    Locations and errors are those of `load_student`.
    """
    with _opened(location, tracking_uri) as place:
        return Student(
            _package(place.folder, location),
            _weights(place.folder, location),
            place.run_id,
            place.model_uri,
        )


def read_package(location: str, *, tracking_uri: str | None = None) -> Package:
    """What a student is and scored; locations and errors as for `load_student`."""
    with _opened(location, tracking_uri) as place:
        return _package(place.folder, location)


def read_weights(location: str, *, tracking_uri: str | None = None) -> dict[str, Tensor]:
    """A student's weights, on the CPU; locations and errors as for `load_student`."""
    with _opened(location, tracking_uri) as place:
        return _weights(place.folder, location)


class _Place(NamedTuple):
    folder: Folder
    """The package's."""
    run_id: str | None = None
    model_uri: str | None = None


@contextmanager
def _opened(location: str, tracking_uri: str | None) -> Iterator[_Place]:
    """Where a package is; one from MLflow is fetched and deleted afterwards."""
    location = location.removeprefix("mlflow:")
    if location.startswith(("models:/", "runs:/")):
        from orchestrator.mlflow_registry import fetch_package

        with tempfile.TemporaryDirectory() as scratch:
            found = fetch_package(location, Path(scratch), tracking_uri=tracking_uri)
            yield _Place(Folder(found.folder), found.run_id, found.model_uri)
        return
    if "://" not in location:
        location = str(Path(location).expanduser().absolute())
    run = Folder(location)
    if (run / "student").read(SOURCE_FILE) is None:
        yield _Place(run)
        return
    state = run.read_json(STATE) or {}
    model = state.get("model")
    yield _Place(run / "student", state.get("run_id"), f"models:/{model['id']}" if model else None)


def _package(folder: Folder, location: str) -> Package:
    values = folder.read_json(SOURCE_FILE)
    if values is None:
        raise UserError(
            f"{location}: there is no student here: name a finished run's folder, its student "
            "folder, or an MLflow model"
        )
    names = values["class_names"]
    channels, height, width = values["image_shape"]
    return Package(
        **values["network"],
        mean=tuple(values["normalize"]["mean"]),
        std=tuple(values["normalize"]["std"]),
        image_shape=(channels, height, width),
        class_names=None if names is None else tuple(names),
        metrics=values["metrics"],
        lineage=values["lineage"],
    )


def _weights(folder: Folder, location: str) -> dict[str, Tensor]:
    content = folder.read(WEIGHTS_FILE)
    expected = (folder.read_json(SOURCE_FILE) or {}).get("weights_sha256")
    if content is None or hashlib.sha256(content).hexdigest() != expected:
        raise UserError(f"{location}: the student's {WEIGHTS_FILE} is missing or damaged")
    tensors: dict[str, Tensor] = load_tensors(content)
    return tensors

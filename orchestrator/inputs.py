"""Reads and checks all that an experiment names, before anything is started or written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from torch import Tensor

from dcd_core import FeatureModel
from orchestrator.build import as_pixels, example_images, feature_layers, student_pixels
from orchestrator.data import Dataset, load_dataset
from orchestrator.data.streamed import node_memory
from orchestrator.errors import UserError
from orchestrator.evaluation import PixelStatistics
from orchestrator.experiment_file import build_experiment, identity_hash
from orchestrator.places import tracking_place
from orchestrator.sources import build_student, build_teacher, check_classes
from orchestrator.spec import Experiment, FitSpec, Normalization, StudentSpec, TeacherSpec
from orchestrator.student_check import check_small_batches
from orchestrator.student_model import read_package, read_weights
from orchestrator.torchvision_source import weights_facts

State = dict[str, Tensor]
_MIB = 2**20
SpecT = TypeVar("SpecT", StudentSpec, TeacherSpec)


class Teacher(NamedTuple):
    """A teacher whose weights are known."""

    spec: TeacherSpec
    """With the source that rebuilds it anywhere."""
    num_classes: int
    state: State
    pixels: PixelStatistics
    lineage: dict[str, str]
    """Tags of the runs that use it."""


class Inputs(NamedTuple):
    """An experiment with its images in memory and its networks known to fit them."""

    experiment: Experiment
    dataset: Dataset
    teacher: Teacher | None
    """None when there is none, or when it is still to be trained."""
    fit: Inputs | None
    """The experiment that trains the teacher."""
    student: FeatureModel
    """As it starts, on the CPU."""
    student_state: State | None
    """Where a student with weights of its own starts from; workers need not find its files."""
    teacher_dim: int | None
    """Width of the teacher's features."""
    notes: list[str]
    """What the user should know and need not act on."""


def read_inputs(experiment: Experiment) -> Inputs:
    """Load images, build both networks on the CPU and run two images through them.

    Raises:
        UserError: anything is missing, broken, or does not fit together.
    """
    dataset = load_dataset(experiment.data)
    layers = feature_layers(experiment.objective)
    _check_channels(experiment.data.normalize, dataset, setting="data.normalize")
    pixels = student_pixels(experiment.data, dataset)
    student_spec, student_state = _resolved_student(experiment)
    student = build_student(
        student_spec,
        num_classes=dataset.num_classes,
        images_example=example_images(dataset, pixels),
        seed=experiment.seed,
        feature_layer=layers["student"],
        state=student_state,
    )
    if student_state is not None or student_spec.checkpoint or student_spec.weights:
        student_state = student.model.state_dict()
    experiment = experiment.model_copy(update={"student": _without_files(student_spec)})
    check_small_batches(experiment, student, dataset)
    notes: list[str] = []
    teacher, fit, teacher_dim = None, None, None
    if experiment.teacher is not None:
        _check_channels(experiment.teacher.normalize, dataset, setting="teacher.normalize")
        if experiment.teacher.fit is not None:
            fit = read_inputs(_fit_experiment(experiment, experiment.teacher))
            _check_same_channels(fit.dataset, dataset)
            name = f"{fit.experiment.name}-{_fit_hash(fit)}"
            fit = fit._replace(experiment=fit.experiment.model_copy(update={"name": name}))
            num_classes = fit.dataset.num_classes
            network = build_teacher(
                experiment.teacher,
                num_classes=num_classes,
                images_example=example_images(dataset, pixels),
                feature_layer=layers["teacher"],
                state=None,
            )
        else:
            teacher, network = _known_teacher(experiment, experiment.teacher, dataset, pixels)
            if teacher.pixels == PixelStatistics(dataset.mean, dataset.std):
                notes.append(
                    "teacher.normalize is not given: the teacher sees images normalised by the "
                    "statistics of the student's training images, not by those it was trained with"
                )
        note = check_classes(
            network, num_classes=dataset.num_classes, uses_kd=experiment.objective.uses_kd
        )
        notes += [note] if note else []
        if note and experiment.teacher.min_top1:
            raise UserError(f"teacher.min_top1: {note}, so it has no accuracy here: drop min_top1")
        teacher_dim = network.feature_dim
    if dataset.is_streamed:
        cache = experiment.teacher_cache
        if cache.mode == "on":
            raise UserError(
                "teacher_cache is on, and the images are streamed (data.streaming), whose answers "
                "are not kept: set teacher_cache: auto or data.streaming: false"
            )
        notes += _streaming_notes(dataset)
    if dataset.skipped:
        notes.append(f"{dataset.skipped} images could not be decoded and are left out")
    return Inputs(experiment, dataset, teacher, fit, student, student_state, teacher_dim, notes)


def _streaming_notes(dataset: Dataset) -> Iterator[str]:
    yield (
        f"the images are streamed: decoded they would take {dataset.decoded_bytes / _MIB:,.0f} MiB "
        f"of this machine's {node_memory() / _MIB:,.0f} MiB"
    )
    if dataset.num_measured is not None and dataset.num_measured < len(dataset.train):
        yield (
            f"mean and standard deviation are those of {dataset.num_measured:,} of the "
            f"{len(dataset.train):,} training images"
        )


def fitted_teacher(spec: TeacherSpec, fit: Inputs, location: str, run: str) -> Teacher:
    """The teacher that a finished fit left in its run's folder."""
    package = read_package(location)
    return Teacher(
        spec=spec,
        num_classes=fit.dataset.num_classes,
        state=read_weights(location),
        pixels=as_pixels(spec.normalize) or PixelStatistics(package.mean, package.std),
        lineage={"teacher.source": spec.source, "teacher.run": run},
    )


def _check_channels(spec: Normalization | None, dataset: Dataset, *, setting: str) -> None:
    channels = dataset.train.shape[0]
    if spec is not None and len(spec.mean) != channels:
        raise UserError(
            f"{setting}: mean and std have {len(spec.mean)} values and the images {channels} "
            f"{'channel' if channels == 1 else 'channels'}: give one value per channel"
        )


def _check_same_channels(fit: Dataset, dataset: Dataset) -> None:
    """The teacher is trained on its own images and later sees the student's."""
    own, students = fit.train.shape[0], dataset.train.shape[0]
    if own != students:
        raise UserError(
            f"teacher.fit.data: its images have {own} channels and the student's {students}, which "
            "the teacher sees later: set data.grey_to_rgb and leave it out of teacher.fit.data"
        )


def _resolved_student(experiment: Experiment) -> tuple[StudentSpec, State | None]:
    """The student's own source where MLflow keeps it, and its weights."""
    spec = experiment.student
    if not spec.source.startswith("mlflow:"):
        return spec, None
    uri, _ = tracking_place(experiment.tracking.uri)
    package = read_package(spec.source, tracking_uri=uri)
    resolved = spec.model_copy(update={"source": package.source, "args": package.args})
    return resolved, read_weights(spec.source, tracking_uri=uri)


def _without_files(spec: SpecT) -> SpecT:
    """The same network for weights that come apart; some of torchvision's imply arguments."""
    args = spec.args
    if spec.weights is not None:
        args = args | weights_facts(spec.source, spec.weights).args
    return spec.model_copy(update={"args": args, "checkpoint": None, "weights": None})


def _known_teacher(
    experiment: Experiment, spec: TeacherSpec, dataset: Dataset, pixels: PixelStatistics
) -> tuple[Teacher, FeatureModel]:
    state, origin = None, spec.checkpoint or spec.weights
    own_pixels = as_pixels(spec.normalize)
    if own_pixels is None and spec.weights is not None:
        own_pixels = as_pixels(weights_facts(spec.source, spec.weights).normalize)
    lineage = {"teacher.source": spec.source}
    if spec.source.startswith("mlflow:"):
        uri, _ = tracking_place(experiment.tracking.uri)
        package = read_package(spec.source, tracking_uri=uri)
        state, origin = read_weights(spec.source, tracking_uri=uri), spec.source
        own_pixels = own_pixels or PixelStatistics(package.mean, package.std)
        spec = spec.model_copy(
            update={
                "source": package.source,
                "args": package.args,
                "num_classes": package.num_classes,
            }
        )
    if origin is None:
        raise UserError(
            f"teacher: {spec.source} has no weights: give teacher.checkpoint, teacher.weights or "
            "teacher.fit"
        )
    pixels = own_pixels or pixels
    network = build_teacher(
        spec,
        num_classes=dataset.num_classes,
        images_example=example_images(dataset, pixels),
        feature_layer=feature_layers(experiment.objective)["teacher"],
        state=state,
    )
    state = network.model.state_dict()
    lineage |= {"teacher.origin": origin, "teacher.sha256": state_digest(state)}
    known = Teacher(_without_files(spec), network.num_classes, state, pixels, lineage)
    return known, network


def _fit_experiment(experiment: Experiment, spec: TeacherSpec) -> Experiment:
    """The experiment that trains the teacher: plain cross entropy, where the student's will run."""
    fit = spec.fit
    assert fit is not None
    _check_same_cuts(experiment, fit)
    data = experiment.data.model_dump() | fit.data
    if spec.normalize is not None:
        data["normalize"] = spec.normalize.model_dump()
    values = {
        "name": "teacher",
        "seed": fit.seed,
        "data": data,
        "student": {"source": spec.source, "args": spec.args},
        "objective": {"method": "ce"},
        "optimizer": fit.optimizer.model_dump(),
        "schedule": fit.schedule.model_dump(),
        "train": experiment.train.model_dump()
        | {"epochs": fit.epochs, "batch_size": fit.batch_size, "accumulate": 1},
        "scaling": experiment.scaling.model_dump(),
        "tracking": experiment.tracking.model_dump() | {"register": None},
        "storage": experiment.storage.model_dump(),
    }
    return build_experiment(values, where="teacher.fit")


def _check_same_cuts(experiment: Experiment, fit: FitSpec) -> None:
    """Refuse cuts that would let the teacher see the student's validation or test images."""
    own = experiment.data.model_dump()
    elsewhere = any(fit.data.get(key, own[key]) != own[key] for key in ("source", "path"))
    for key in ("split_seed", "test_fraction", "val_fraction"):
        if not elsewhere and fit.data.get(key, own[key]) != own[key]:
            raise UserError(
                f"teacher.fit.data.{key}: differs from data.{key}, so the teacher would be trained "
                "on the student's validation or test images: drop it"
            )


def _fit_hash(fit: Inputs) -> str:
    """Names a fitted teacher after its spec and its images, so that no other is ever reused."""
    text = identity_hash(fit.experiment) + fit.dataset.fingerprint
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def state_digest(state: State) -> str:
    """16 hex digits over the names and values of a network's weights."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    return digest.hexdigest()[:16]

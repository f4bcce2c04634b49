"""Reads and checks all that an experiment names, before anything is started or written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from dcd_core import FeatureModel
from orchestrator.build import (
    as_pixels,
    capture_hints,
    example_images,
    feature_layers,
    student_pixels,
)
from orchestrator.data import Dataset, load_dataset
from orchestrator.data.balance import describe_balance
from orchestrator.data.streamed import node_memory
from orchestrator.errors import UserError
from orchestrator.evaluation import PixelStatistics
from orchestrator.experiment_file import build_experiment, identity_hash
from orchestrator.lineage import Chain, chain_of
from orchestrator.origins import Start, find_origin, student_tags, without_files
from orchestrator.sources import build_teacher, check_classes
from orchestrator.spec import Experiment, FitSpec, Normalization, TeacherSpec
from orchestrator.spec.methods import find_method
from orchestrator.student_check import check_small_batches
from orchestrator.student_model import read_student
from orchestrator.student_start import describe_pixels, starting_student

State = dict[str, Tensor]
_MIB = 2**20


class Teacher(NamedTuple):
    """A teacher whose weights are known."""

    spec: TeacherSpec
    """With the source that rebuilds it anywhere."""
    num_classes: int
    state: State
    pixels: PixelStatistics
    lineage: dict[str, str]
    """Tags of the runs that use it."""
    chain: Chain = Chain()
    """The networks before its students, itself the last."""


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
    start: Start | None
    """Of a student with weights of its own; None of one that starts at random."""
    teacher_hints: tuple[tuple[int, int, int], ...] = ()
    """(C, h, w) of the teacher's intermediate features that the method compares."""


def read_inputs(experiment: Experiment) -> Inputs:
    """Load images, build both networks on the CPU and run two images through them.

    Raises:
        UserError: anything is missing, broken, or does not fit together.
    """
    dataset = load_dataset(experiment.data)
    layers = feature_layers(experiment.objective)
    _check_channels(experiment.data.normalize, dataset, setting="data.normalize")
    pixels = student_pixels(experiment.data, dataset)
    notes: list[str] = []
    student, start = starting_student(experiment, dataset, pixels, notes)
    check_small_batches(experiment, student, dataset)
    teacher, fit, teacher_dim = None, None, None
    teacher_hints: tuple[tuple[int, int, int], ...] = ()
    if experiment.teacher is not None:
        _check_channels(experiment.teacher.normalize, dataset, setting="teacher.normalize")
        if experiment.teacher.fit is not None:
            fit = read_fit(experiment, experiment.teacher)
            _check_same_channels(fit.dataset, dataset)
            num_classes = fit.dataset.num_classes
            network = build_teacher(
                experiment.teacher,
                num_classes=num_classes,
                images_example=example_images(dataset, pixels),
                feature_layer=layers["teacher"],
                state=None,
            )
        else:
            teacher, network = known_teacher(experiment, experiment.teacher, dataset, notes)
        note = check_classes(
            network, num_classes=dataset.num_classes, uses_kd=experiment.objective.uses_classes
        )
        notes += [note] if note else []
        if note and experiment.teacher.min_top1:
            raise UserError(f"teacher.min_top1: {note}, so it has no accuracy here: drop min_top1")
        teacher_dim = network.feature_dim
        teacher_pixels = pixels if teacher is None else teacher.pixels
        capture_hints(
            experiment.objective,
            student,
            network,
            student_example=example_images(dataset, pixels),
            teacher_example=example_images(dataset, teacher_pixels),
        )
        teacher_hints = network.hint_shapes
    if dataset.is_streamed:
        cache = experiment.teacher_cache
        if cache.mode == "on":
            raise UserError(
                "teacher_cache is on, and the images are streamed (data.streaming), whose answers "
                "are not kept: set teacher_cache: auto or data.streaming: false"
            )
        method = find_method(experiment.objective.method)
        if method is not None and method.keeps_images:
            raise UserError(
                f"objective.method {experiment.objective.method!r} remembers each training image, "
                "and they are streamed (data.streaming): use 'crd_batch', or data.streaming: false"
            )
        notes += _streaming_notes(dataset)
    if dataset.skipped:
        notes.append(f"{dataset.skipped} images could not be decoded and are left out")
    balance = describe_balance(dataset)
    notes += [balance] if balance else []
    state = student.model.state_dict() if start is not None else None
    return Inputs(
        experiment,
        dataset,
        teacher,
        fit,
        student,
        state,
        teacher_dim,
        notes,
        start,
        teacher_hints,
    )


def read_fit(experiment: Experiment, teacher: TeacherSpec) -> Inputs:
    """What trains a teacher with `fit`, under the name by which its run is found again.

    Raises:
        UserError: as in `read_inputs`.
    """
    fit = read_inputs(_fit_experiment(experiment, teacher))
    name = f"{fit.experiment.name}-{_fit_hash(fit)}"
    return fit._replace(experiment=fit.experiment.model_copy(update={"name": name}))


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
    trained = read_student(location)
    package = trained.package
    tags = {"source": spec.source, "run": run, **student_tags(trained)}
    return Teacher(
        spec=spec,
        num_classes=fit.dataset.num_classes,
        state=trained.state,
        pixels=as_pixels(spec.normalize) or PixelStatistics(package.mean, package.std),
        lineage={f"teacher.{key}": value for key, value in tags.items()},
        chain=chain_of(package.lineage).followed_by(
            spec.source, run_id=trained.run_id, origin=f"run {run}"
        ),
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


def known_teacher(
    experiment: Experiment, spec: TeacherSpec, dataset: Dataset, notes: list[str]
) -> tuple[Teacher, FeatureModel]:
    """A teacher with weights of its own, and its network on the CPU.

    Args:
        experiment: whose teacher it is.
        spec: its section.
        dataset: the images that it is tried on.
        notes: gets what the user should know.

    Raises:
        UserError: it has no weights, or they do not fit.
    """
    origin = find_origin(spec, tracking_uri=experiment.tracking.uri)
    if not origin.tags:
        raise UserError(
            f"teacher: {spec.source} has no weights: give teacher.checkpoint, teacher.weights or "
            "teacher.fit"
        )
    default = student_pixels(experiment.data, dataset)
    pixels = as_pixels(spec.normalize) or origin.pixels or default
    fits = len(pixels.mean) == len(default.mean)
    network = build_teacher(
        origin.spec,
        num_classes=dataset.num_classes,
        images_example=example_images(dataset, pixels if fits else default),
        feature_layer=feature_layers(experiment.objective)["teacher"],
        state=origin.state,
    )
    if not fits:
        raise UserError(
            f"teacher.source: {spec.source} was trained on images of {len(pixels.mean)} channels "
            f"and these have {len(default.mean)}: set data.grey_to_rgb: true, or teacher.normalize"
        )
    if origin.pixels is not None and spec.normalize is None:
        notes.append(describe_pixels("teacher", pixels))
    elif pixels == PixelStatistics(dataset.mean, dataset.std):
        notes.append(
            "teacher.normalize is not given: the teacher sees images normalised by the statistics "
            "of the student's training images, not by those it was trained with"
        )
    state = network.model.state_dict()
    tags = {"source": spec.source, **origin.tags, "sha256": state_digest(state)}
    known = Teacher(
        without_files(origin.spec),
        network.num_classes,
        state,
        pixels,
        {f"teacher.{key}": value for key, value in tags.items()},
        origin.chain.followed_by(
            origin.spec.source, run_id=origin.tags.get("run_id"), origin=origin.tags["origin"]
        ),
    )
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
    elsewhere = any(fit.data.get(key, own[key]) != own[key] for key in ("source", "path", "args"))
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

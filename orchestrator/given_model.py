"""The classifier that a command is about, found by what the user calls it.

It is called by the name of a run, a folder with a run or a student, ``mlflow:URI``, an experiment
file, which stands for its teacher, or a checkpoint file together with the source of its network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from dcd_core.models import MODELS
from orchestrator.error_text import nearest
from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment, is_uri, load_experiment
from orchestrator.inputs import read_fit
from orchestrator.places import storage_folder
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.student_model import SOURCE_FILE, Package, Student, read_student
from orchestrator.timm_source import TIMM
from orchestrator.torchvision_weights import TORCHVISION
from orchestrator.tracking import is_group

YAML = (".yaml", ".yml")
MLFLOW = ("mlflow:", "models:/", "runs:/")
_MAX_NAMES = 10


class Source(NamedTuple):
    """A network by its source, for a checkpoint file."""

    source: str
    checkpoint: str
    num_classes: int | None
    """None for the data's."""


class Given(NamedTuple):
    """A classifier that was found and is not built yet: a student, an experiment's teacher, or a
    checkpoint."""

    name: str
    """Short, for tables, folders and MLflow."""
    student_at: str | None = None
    """Where the student is; None without one."""
    student: Student | None = None
    """Read when it was found, since an alias of MLflow's may name another one at any time."""
    folder: Folder | None = None
    """Of the run that has left it."""
    experiment: Experiment | None = None
    """Of that run, or the one whose teacher it is."""
    source: Source | None = None
    """None but for a checkpoint."""

    @property
    def package(self) -> Package | None:
        """All about the student but its weights."""
        return self.student.package if self.student else None

    @property
    def in_channels(self) -> int | None:
        """Of its images; None where only the data tells."""
        return self.package.in_channels if self.package else None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images it was trained on; None where that is not known."""
        return self.package.image_shape[1:] if self.package else None


def find_model(
    given: str,
    *,
    storage: str | None = None,
    source: str | None = None,
    num_classes: int | None = None,
    tracking_uri: str | None = None,
) -> Given:
    """What the user means.

    Args:
        given: what was typed.
        storage: folder or URI of the runs, when not the default.
        source: of the network whose checkpoint ``given`` names.
        num_classes: K of that network, when not the data's.
        tracking_uri: where MLflow is, when not the default.

    Raises:
        UserError: there is no such thing, or it has no student yet.
    """
    if source is not None:
        if source.startswith("mlflow:"):
            raise UserError(f"--source {source}: it brings its weights: give it as the model")
        if not is_uri(given) and not Path(given).expanduser().exists():
            raise UserError(f"{given}: there is no such checkpoint file")  # before images are read
        return Given(_base_name(given), source=Source(source, given, num_classes))
    if num_classes is not None:
        raise UserError("--num-classes is of a checkpoint's network: give --source too")
    if given.startswith(MLFLOW):
        location = _with_scheme(given)
        student = read_student(location, tracking_uri=tracking_uri)
        return Given(_base_name(location), location, student)
    if given.endswith(YAML):
        return _teacher_in(load_experiment(given), storage)
    return _find_student(given, storage_folder(storage))


def teacher_of(given: Given, *, storage: str | None = None) -> Given | None:
    """The teacher that a student's run has recorded; None when it had none.

    Raises:
        UserError: it is not known here, or its run is not in the storage.
    """
    experiment = given.experiment
    if given.package is None:
        return None
    fitted = given.package.lineage.get("teacher.run")
    if fitted is not None:
        return _find_beside(given, fitted, storage_folder(storage))
    if experiment is not None and experiment.teacher is not None:
        return Given(experiment.teacher.source, experiment=experiment)
    if "teacher.source" in given.package.lineage:
        raise UserError(
            f"{given.name} says that it learned from {given.package.lineage['teacher.source']}, "
            "and not where that is: give --teacher"
        )
    return None


def _teacher_in(experiment: Experiment, storage: str | None) -> Given:
    """The teacher of an experiment file."""
    teacher = experiment.teacher
    if teacher is None:
        raise UserError(f"{experiment.name}: the experiment has no teacher: name its run instead")
    if teacher.fit is None:
        return Given(teacher.source, experiment=experiment)
    runs = storage_folder(storage or experiment.storage.path)
    name = read_fit(experiment, teacher).experiment.name
    if (runs / name / "student").read(SOURCE_FILE) is None:
        raise UserError(
            f"{experiment.name}: its teacher is not trained yet ({name} in {runs.location}): "
            "`dcd distill` with this file trains it first"
        )
    return _find_student(name, runs)


def _find_student(given: str, runs: Folder) -> Given:
    """The student of a run by name, or of a run's or a package's folder."""
    path = Path(given).expanduser()
    places = [runs / given] if not path.is_absolute() else []
    places.append(Folder(given if "://" in given else str(path.absolute())))
    for place in places:
        inside = place / "student"
        if inside.read(SOURCE_FILE) is not None:
            return _of_run(place, inside)
        if place.read(SOURCE_FILE) is not None:
            above, _, name = place.location.rpartition("/")
            return _of_run(Folder(above) if name == "student" else place, place)
    for place in places:
        if is_group(place):
            raise UserError(f"{given} is many runs: name one of them{_student_in(place, given)}")
        if place.read("spec.json") is not None:
            raise UserError(f"{given} has no student yet: `dcd distill --resume` finishes the run")
    if given in MODELS or given.startswith((TIMM, TORCHVISION)):
        raise UserError(
            f"{given} is a network and no trained model: give a checkpoint of it and --source "
            f"{given}, or an experiment file whose teacher it is"
        )
    known = [name for name in runs.names() if (runs / name / "student").read(SOURCE_FILE)]
    listing = ", ".join(known[:_MAX_NAMES]) or "none"
    raise UserError(
        f"no model {given!r}: give a run in {runs.location} ({listing}), a folder, mlflow:URI, an "
        "experiment file for its teacher, or a checkpoint with --source"
        f"{nearest(given, known)}"
    )


def _find_beside(given: Given, name: str, runs: Folder) -> Given:
    """A run that lies in the storage, or beside another one."""
    places = [runs]
    if given.folder is not None:
        places.append(Folder(given.folder.location.rsplit("/", 1)[0]))
    if given.experiment is not None and given.experiment.storage.path is not None:
        places.append(Folder(given.experiment.storage.path))
    for place in places:
        if (place / name / "student").read(SOURCE_FILE) is not None:
            return _find_student(name, place)
    raise UserError(f"{name}, the run that has trained it, is not in {runs.location}")


def _of_run(run: Folder, package: Folder) -> Given:
    """A package, with the run around it where there is one."""
    stored = run.read_json("spec.json")
    student = read_student(package.location)
    if stored is None:
        return Given(_base_name(package.location), package.location, student)
    experiment = build_experiment(stored, where=f"{run.location}/spec.json")
    return Given(experiment.name, package.location, student, run, experiment)


def _student_in(group: Folder, name: str) -> str:
    for part in ("finals", "trials"):
        for run in (group / part).names():
            if (group / part / run / "student").read(SOURCE_FILE) is not None:
                return f", such as {name}/{part}/{run}"
    return ""


def _with_scheme(given: str) -> str:
    """An MLflow URI as `load_student` takes it; of a run, its student."""
    location = given.removeprefix("mlflow:")
    return f"{location}/student" if re.fullmatch(r"runs:/[^/]+/?", location) else location


def _base_name(location: str) -> str:
    """What folders and MLflow may be called after it."""
    scheme, _, rest = location.rpartition(":/")
    parts = [part for part in rest.split("/") if part]
    name = "-".join(parts) if scheme in ("models", "runs") else (parts or ["model"])[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"

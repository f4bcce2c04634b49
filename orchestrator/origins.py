"""Weights that a network's section names without a file: a library's, and tracked students'."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from orchestrator.build import as_pixels
from orchestrator.errors import naming
from orchestrator.evaluation import PixelStatistics
from orchestrator.lineage import Chain, chain_of
from orchestrator.places import tracking_place
from orchestrator.sources import weights_facts
from orchestrator.spec import StudentSpec, TeacherSpec
from orchestrator.student_model import Student, read_student

SpecT = TypeVar("SpecT", StudentSpec, TeacherSpec)


class Start(NamedTuple):
    """Where a student with weights of its own starts from; the weights come apart."""

    given: StudentSpec
    """Its section."""
    spec: StudentSpec
    """What rebuilds its network anywhere."""
    pixels: PixelStatistics | None
    """What images the weights were trained on, where that is known."""
    tags: dict[str, str]
    """Where they come from."""


class Origin(NamedTuple, Generic[SpecT]):
    """What a network's section leads to."""

    spec: SpecT
    """With the source that rebuilds the network anywhere; a library's weights are still to load."""
    state: dict[str, Tensor] | None
    """A tracked student's weights."""
    pixels: PixelStatistics | None
    """What images its weights were trained on, where that is known."""
    chain: Chain
    """The networks before it."""
    tags: dict[str, str]
    """Where its weights come from, by the ends of the tags' names."""


def find_origin(spec: SpecT, *, tracking_uri: str | None) -> Origin[SpecT]:
    """Follow a section to the weights that it names.

    Args:
        spec: of a student or a teacher.
        tracking_uri: of the experiment, None for the default one.

    Raises:
        UserError: there is no such student, or no such network or weights.
    """
    role = "teacher" if isinstance(spec, TeacherSpec) else "student"
    if spec.source.startswith("mlflow:"):
        uri, _ = tracking_place(tracking_uri)
        with naming(f"{role}.source"):
            student = read_student(spec.source, tracking_uri=uri)
        update: dict[str, object] = {
            "source": student.package.source,
            "args": student.package.args,
        }
        if isinstance(spec, TeacherSpec):
            update["num_classes"] = student.package.num_classes
        return Origin(
            spec.model_copy(update=update),
            student.state,
            PixelStatistics(student.package.mean, student.package.std),
            chain_of(student.package.lineage),
            {"origin": spec.source, **student_tags(student)},
        )
    pixels = None
    if spec.weights is not None:
        with naming(f"{role}.weights"):
            pixels = as_pixels(weights_facts(spec.source, spec.weights).normalize)
    origin = spec.checkpoint or spec.weights
    return Origin(spec, None, pixels, Chain(), {"origin": origin} if origin else {})


def student_tags(student: Student) -> dict[str, str]:
    """Where a tracked student is in MLflow, by the ends of the tags' names."""
    found = {"run_id": student.run_id, "model": student.model_uri}
    return {key: value for key, value in found.items() if value is not None}


def without_files(spec: SpecT) -> SpecT:
    """The same network for weights that come apart; some of a library's imply arguments."""
    args = spec.args
    if spec.weights is not None:
        args = weights_facts(spec.source, spec.weights).args | args
    return spec.model_copy(update={"args": args, "checkpoint": None, "weights": None})

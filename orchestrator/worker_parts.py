"""The parts of a run on one worker's device: networks, images, the teacher's answers."""

from __future__ import annotations

from dcd_core import (
    FeatureModel,
    FrozenTeacher,
)
from orchestrator.batches import Recipe
from orchestrator.build import (
    capture_hints,
    example_images,
    feature_layers,
)
from orchestrator.computation import Computation, choose_computation
from orchestrator.data import Dataset, Split
from orchestrator.evaluation import (
    Images,
    PixelStatistics,
    Scored,
)
from orchestrator.frozen_teacher import (
    freeze,
    knows_the_classes,
    score_teacher,
)
from orchestrator.reporter import Ranks
from orchestrator.sources import build_student, build_teacher
from orchestrator.streaming.opening import open_split
from orchestrator.streaming.stream import Stream
from orchestrator.teacher_cache.build import build_teaching
from orchestrator.teaching import Teaching
from orchestrator.work import Shared, Work


def open_images(work: Work, split: Split, ranks: Ranks) -> Images | Stream:
    """A split's images, held or streamed."""
    return open_split(split, ranks, on_ray=work.experiment.scaling.workers > 0)


def computation_of(
    work: Work,
    shared: Shared,
    student: FeatureModel,
    teacher: FeatureModel | None,
    ranks: Ranks,
) -> Computation:
    """How this rank computes."""
    pixels = work.student_pixels(shared.dataset)
    return choose_computation(
        work.experiment,
        ranks.device,
        student=student,
        teacher=teacher,
        example=example_images(shared.dataset, pixels),
        num_images=len(shared.dataset.train.labels) // ranks.size,
        num_ranks=ranks.size,
    )


def frozen_teacher(
    work: Work,
    teacher: FeatureModel | None,
    computation: Computation,
    dataset: Dataset,
    validation: Scored,
    ranks: Ranks,
) -> tuple[FrozenTeacher | None, dict[str, float]]:
    """The teacher to learn from, and its scores; none where it does not know the classes."""
    if teacher is None or work.teacher is None or work.teacher_pixels is None:
        return None, {}
    pixels = work.teacher_pixels
    frozen = freeze(teacher, dataset, pixels, precision=computation.teacher, ranks=ranks)
    if not knows_the_classes(teacher, dataset):
        return frozen, {}
    scores = score_teacher(
        teacher,
        frozen,
        dataset,
        pixels,
        validation=validation,
        ranks=ranks,
        known=work.teacher_scores,
        min_top1=work.teacher.min_top1,
    )
    return frozen, scores


def teaching_of(
    work: Work,
    shared: Shared,
    frozen: FrozenTeacher | None,
    training: Images | Stream,
    recipe: Recipe,
    ranks: Ranks,
    *,
    own_rows: bool = True,
) -> Teaching | None:
    """Where the teacher's answers come from."""
    if frozen is None or work.teacher is None or work.teacher_pixels is None:
        return None
    return build_teaching(
        work.cache,
        work.experiment,
        work.teacher,
        shared.teacher_state,
        frozen,
        shared.dataset,
        pixels=work.teacher_pixels,
        training=training,
        recipe=recipe,
        ranks=ranks,
        own_rows=own_rows,
    )


def build_networks(
    work: Work, shared: Shared, pixels: PixelStatistics, ranks: Ranks
) -> tuple[FeatureModel, FeatureModel | None]:
    """Student and teacher on this rank's device."""
    experiment, dataset = work.experiment, shared.dataset
    layers = feature_layers(experiment.objective)
    teacher = None
    if work.teacher is not None and work.teacher_pixels is not None:
        teacher = build_teacher(
            work.teacher,
            num_classes=work.teacher_classes or dataset.num_classes,
            images_example=example_images(dataset, work.teacher_pixels),
            feature_layer=layers["teacher"],
            state=shared.teacher_state,
        ).to(ranks.device)
    start = work.student_start
    student = build_student(
        experiment.student if start is None else start.spec,
        num_classes=dataset.num_classes,
        images_example=example_images(dataset, pixels),
        seed=experiment.seed,
        feature_layer=layers["student"],
        state=None if start is None else shared.student_state,
    ).to(ranks.device)
    if teacher is not None and work.teacher_pixels is not None:
        capture_hints(
            experiment.objective,
            student,
            teacher,
            student_example=example_images(dataset, pixels),
            teacher_example=example_images(dataset, work.teacher_pixels),
        )
    return student, teacher

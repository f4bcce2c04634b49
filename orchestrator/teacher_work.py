"""What is done with a teacher ahead of the runs that learn from it."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.build import (
    build_recipe,
)
from orchestrator.errors import RunFailed
from orchestrator.frozen_teacher import (
    freeze,
)
from orchestrator.reporter import Ranks
from orchestrator.teacher_cache.teaching import CachedTeaching
from orchestrator.work import Shared, Work
from orchestrator.worker_parts import (
    build_networks,
    computation_of,
    frozen_teacher,
    open_images,
    teaching_of,
)


def measure_teacher(work: Work, shared: Shared, ranks: Ranks) -> dict[str, float]:
    """The teacher on the validation images, for `Work.teacher_scores` of many runs.

    Returns:
        ``teacher/val_*``; empty without a teacher that knows the classes.

    Raises:
        UserError: it is no better than chance.
    """
    pixels = work.student_pixels(shared.dataset)
    student, teacher = build_networks(work, shared, pixels, ranks)
    computation = computation_of(work, shared, student, teacher, ranks)
    validation = open_images(work, shared.dataset.val, ranks)
    return frozen_teacher(work, teacher, computation, shared.dataset, validation, ranks)[1]


def fill_cache(work: Work, shared: Shared, ranks: Ranks, *, epochs: int) -> Iterator[str | None]:
    """Compute the teacher's answers ahead of the runs that will read them.

    Yields:
        For each of the first epochs, None, or why not all of its answers are there.
    """
    pixels = work.student_pixels(shared.dataset)
    student, teacher = build_networks(work, shared, pixels, ranks)
    computation = computation_of(work, shared, student, teacher, ranks)
    assert teacher is not None and work.teacher_pixels is not None
    frozen = freeze(
        teacher,
        shared.dataset,
        work.teacher_pixels,
        precision=computation.teacher,
        ranks=ranks,
    )
    recipe = build_recipe(
        work.experiment, pixels, precision=computation.student, channels_last=False
    )
    training = open_images(work, shared.dataset.train, ranks)
    # Batches as the runs' workers will have them, of all ranks.
    workers = ranks._replace(size=max(1, work.experiment.scaling.workers))
    teaching = teaching_of(work, shared, frozen, training, recipe, workers, own_rows=False)
    if not isinstance(teaching, CachedTeaching):
        raise RunFailed("the teacher's answers cannot be kept; the warning above says why")
    for epoch in range(1, epochs + 1):
        yield teaching.fill(epoch)

"""All that one worker does for a run, in the process that trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from dcd_core import (
    Distiller,
    FeatureModel,
    FrozenTeacher,
    synchronise_batch_norm,
    use_channels_last_,
)
from orchestrator import loop
from orchestrator.batches import Recipe
from orchestrator.build import (
    build_distiller,
    build_objective,
    build_optimizer,
    build_recipe,
    capture_hints,
    example_images,
    feature_layers,
    student_pixels,
)
from orchestrator.checkpoints import Checkpoint, Checkpoints
from orchestrator.computation import Computation, choose_computation, write_computation
from orchestrator.data import Dataset, Split
from orchestrator.data.balance import (
    CLASS_TABLE,
    class_counts,
    class_table,
    group_metrics,
    shot_groups,
)
from orchestrator.errors import RunFailed, UserError
from orchestrator.evaluation import (
    Images,
    PixelStatistics,
    Scored,
    evaluate,
    score_metrics,
)
from orchestrator.frozen_teacher import (
    freeze,
    knows_the_classes,
    score_teacher,
    teacher_metrics,
)
from orchestrator.origins import Start, without_files
from orchestrator.places import CachePlace
from orchestrator.reporter import Ranks, Reporter
from orchestrator.sources import build_student, build_teacher
from orchestrator.spec import Experiment, TeacherSpec
from orchestrator.storage import Folder
from orchestrator.streaming.opening import open_split
from orchestrator.streaming.stream import Stream
from orchestrator.student_model import save_package
from orchestrator.teacher_cache.build import build_teaching
from orchestrator.teacher_cache.teaching import CachedTeaching
from orchestrator.teaching import Teaching


class Work(NamedTuple):
    """All that a worker needs to train one student, but for what Ray shares between workers."""

    experiment: Experiment
    teacher: TeacherSpec | None
    """With the source that rebuilds it anywhere; its weights come apart."""
    teacher_classes: int | None
    teacher_pixels: PixelStatistics | None
    run: Folder
    lineage: dict[str, str]
    """Tags that say where the student comes from."""
    teacher_scores: Mapping[str, float] | None = None
    """The teacher's `teacher/val_*`, where another run has measured them on the same images."""
    cache: CachePlace | None = None
    """Where the teacher's answers are kept; None to compute them anew."""
    uses_test: bool = True
    """Whether the students and the teacher are scored on the test split in the end."""
    start: Start | None = None
    """Where students with weights of their own start from."""

    @property
    def student_start(self) -> Start | None:
        """Where this student starts from; None for one of other settings, as trials may have."""
        start = self.start
        return start if start is not None and start.given == self.experiment.student else None

    def student_pixels(self, dataset: Dataset) -> PixelStatistics:
        """What the student sees: as is said, as its weights were trained, or as is measured."""
        start = self.student_start
        if start is not None and start.pixels is not None and not self.experiment.data.normalize:
            return start.pixels
        return student_pixels(self.experiment.data, dataset)


class Shared(NamedTuple):
    """The large inputs of a run."""

    dataset: Dataset
    teacher_state: dict[str, Tensor] | None
    student_state: dict[str, Tensor] | None
    """Where the student starts from, when that is no file that workers can read."""


def run_work(work: Work, shared: Shared, reporter: Reporter) -> dict[str, float]:
    """Train, evaluate, and leave the best student in the run's folder.

    Returns:
        The final metrics; rank 0 has written them to ``result.json`` too.

    Raises:
        UserError: the teacher is no better than chance on the validation split.
        Diverged: a loss was not finite.
    """
    experiment, dataset, ranks = work.experiment, shared.dataset, reporter.ranks
    validation = _open(work, dataset.val, ranks)
    pixels = work.student_pixels(dataset)
    networks = error = None
    try:
        networks = _build_networks(work, shared, pixels, ranks)
    except UserError as raised:
        error = str(raised)
    # Were only some ranks to give up, the others would wait for them for ever.
    for message in _of_all_ranks(error, ranks):
        if message is not None:
            raise UserError(message)
    assert networks is not None
    student, teacher = networks

    computation = _computation(work, shared, student, teacher, ranks)
    frozen, teacher_scores = _frozen(work, teacher, computation, dataset, validation, ranks)
    if ranks.rank == 0:
        same = teacher_scores.get("teacher/val_agreement")
        write_computation(work.run, computation, agreement=same)
    reporter.report({0: teacher_scores} if teacher_scores else {})

    channels_last = use_channels_last_(student, example_images(dataset, pixels).to(ranks.device))
    if ranks.size > 1 and experiment.scaling.synchronised:
        synchronise_batch_norm(student)
    distiller = build_distiller(
        student,
        teacher.feature_dim if teacher is not None else None,
        experiment.objective,
        micro_batch_size=experiment.train.micro_batch_size,
        seed=experiment.seed,
        teacher_hints=teacher.hint_shapes if teacher is not None else (),
        train_labels=from_dlpack(dataset.train.labels),
    ).to(ranks.device)
    if computation.compiled:
        torch.compiler.reset()  # a process that trains many students compiles each of them
        student.compile()
        if frozen is not None:
            frozen.compile()
    checkpoints = Checkpoints(work.run / "checkpoints", keep=experiment.storage.keep)
    training = _open(work, dataset.train, ranks)
    recipe = build_recipe(
        experiment,
        pixels,
        precision=computation.student,
        channels_last=channels_last,
        cuda_graphs=computation.cuda_graphs,
    )
    last = loop.train(
        distiller,
        _teaching(work, shared, frozen, training, recipe, ranks),
        objective=build_objective(experiment.objective),
        optimizer=build_optimizer(distiller, experiment.optimizer),
        training=training,
        validation=validation,
        recipe=recipe,
        checkpoints=checkpoints,
        reporter=reporter,
    )
    best = checkpoints.load(last.best.epoch)
    if best is None:
        raise RunFailed(f"the best checkpoint, of epoch {last.best.epoch}, cannot be read")
    result = {
        "best_epoch": float(last.best.epoch),
        **{k: v for k, v in last.history[last.best.epoch - 1].items() if k.startswith("val/")},
        "val/top1_last": last.history[-1]["val/top1"],
        **teacher_scores,
        **_test(distiller, best, teacher, work=work, dataset=dataset, pixels=pixels, ranks=ranks),
    }
    if ranks.rank == 0:
        _leave_student(work, distiller, dataset, pixels=pixels, metrics=result)
        work.run.write_json("result.json", result)
    return result


def measure_teacher(work: Work, shared: Shared, ranks: Ranks) -> dict[str, float]:
    """The teacher on the validation images, for `Work.teacher_scores` of many runs.

    Returns:
        ``teacher/val_*``; empty without a teacher that knows the classes.

    Raises:
        UserError: it is no better than chance.
    """
    pixels = work.student_pixels(shared.dataset)
    student, teacher = _build_networks(work, shared, pixels, ranks)
    computation = _computation(work, shared, student, teacher, ranks)
    validation = _open(work, shared.dataset.val, ranks)
    return _frozen(work, teacher, computation, shared.dataset, validation, ranks)[1]


def _open(work: Work, split: Split, ranks: Ranks) -> Images | Stream:
    return open_split(split, ranks, on_ray=work.experiment.scaling.workers > 0)


def _computation(
    work: Work,
    shared: Shared,
    student: FeatureModel,
    teacher: FeatureModel | None,
    ranks: Ranks,
) -> Computation:
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


def _frozen(
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


def fill_cache(work: Work, shared: Shared, ranks: Ranks, *, epochs: int) -> Iterator[str | None]:
    """Compute the teacher's answers ahead of the runs that will read them.

    Yields:
        For each of the first epochs, None, or why not all of its answers are there.
    """
    pixels = work.student_pixels(shared.dataset)
    student, teacher = _build_networks(work, shared, pixels, ranks)
    computation = _computation(work, shared, student, teacher, ranks)
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
    training = _open(work, shared.dataset.train, ranks)
    # Batches as the runs' workers will have them, of all ranks.
    workers = ranks._replace(size=max(1, work.experiment.scaling.workers))
    teaching = _teaching(work, shared, frozen, training, recipe, workers, own_rows=False)
    if not isinstance(teaching, CachedTeaching):
        raise RunFailed("the teacher's answers cannot be kept; the warning above says why")
    for epoch in range(1, epochs + 1):
        yield teaching.fill(epoch)


def _teaching(
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


def _build_networks(
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


def _of_all_ranks(value: str | None, ranks: Ranks) -> list[str | None]:
    """Every rank's value, on every rank."""
    if ranks.size == 1:
        return [value]
    values: list[str | None] = [None] * ranks.size
    dist.all_gather_object(values, value)
    return values


def _test(
    distiller: Distiller,
    best: Checkpoint,
    teacher: FeatureModel | None,
    *,
    work: Work,
    dataset: Dataset,
    pixels: PixelStatistics,
    ranks: Ranks,
) -> dict[str, float]:
    """The one look at the test split, if that is wanted: last student, best student, teacher.

    Leaves the best student in the distiller, and the accuracies of all classes in the run's folder.
    """
    last, crop = distiller.student, dataset.crop_size
    wanted = dataset.test if work.uses_test else None
    test = _open(work, wanted, ranks) if wanted is not None else None
    metrics: dict[str, float] = {}
    if test is not None:
        scores = evaluate(last, test, pixels=pixels, ranks=ranks, crop_size=crop)
        metrics["test/top1_last"] = scores.top1
    distiller.load_state_dict(best.state["distiller"])
    if test is not None:
        scores = evaluate(last, test, pixels=pixels, ranks=ranks, crop_size=crop)
        groups = shot_groups(class_counts(dataset.train, dataset.num_classes))
        metrics |= score_metrics("test", scores)
        metrics |= group_metrics("test", scores.class_top1, groups)
        by_class = {"test_top1": scores.class_top1}
        if (
            teacher is not None
            and work.teacher_pixels is not None
            and knows_the_classes(teacher, dataset)
        ):
            scores = evaluate(
                teacher, test, pixels=work.teacher_pixels, ranks=ranks, crop_size=crop
            )
            metrics |= teacher_metrics("test", scores)
            by_class["teacher_test_top1"] = scores.class_top1
        if ranks.rank == 0:
            work.run.write(CLASS_TABLE, class_table(dataset, by_class))
    return metrics


def _leave_student(
    work: Work,
    distiller: Distiller,
    dataset: Dataset,
    *,
    pixels: PixelStatistics,
    metrics: dict[str, float],
) -> None:
    start = work.student_start
    student = without_files(work.experiment.student) if start is None else start.spec
    save_package(
        work.run / "student",
        state_dict={k: v.cpu() for k, v in distiller.student.model.state_dict().items()},
        network={
            "source": student.source,
            "args": student.args,
            "num_classes": dataset.num_classes,
            "in_channels": dataset.train.shape[0],
        },
        mean=pixels.mean,
        std=pixels.std,
        image_shape=dataset.input_shape,
        class_names=dataset.class_names,
        metrics=metrics,
        lineage=work.lineage,
    )

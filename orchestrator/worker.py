"""All that one worker does for a run, in the process that trains."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.utils.dlpack import from_dlpack

from dcd_core import (
    Distiller,
    FeatureModel,
    synchronise_batch_norm,
    use_channels_last_,
)
from orchestrator import loop
from orchestrator.build import (
    build_distiller,
    build_objective,
    build_optimizer,
    build_recipe,
    example_images,
)
from orchestrator.checkpoints import Checkpoint, Checkpoints
from orchestrator.computation import write_computation
from orchestrator.data import Dataset
from orchestrator.data.balance import (
    CLASS_TABLE,
    class_counts,
    class_table,
    group_metrics,
    shot_groups,
)
from orchestrator.errors import RunFailed, UserError
from orchestrator.evaluation import (
    PixelStatistics,
    evaluate,
    score_metrics,
)
from orchestrator.frozen_teacher import (
    knows_the_classes,
    teacher_metrics,
)
from orchestrator.origins import without_files
from orchestrator.reporter import Ranks, Reporter
from orchestrator.student_model import save_package
from orchestrator.work import Shared, Work
from orchestrator.worker_parts import (
    build_networks,
    computation_of,
    frozen_teacher,
    open_images,
    teaching_of,
)


def run_work(work: Work, shared: Shared, reporter: Reporter) -> dict[str, float]:
    """Train, evaluate, and leave the best student in the run's folder.

    Returns:
        The final metrics; rank 0 has written them to ``result.json`` too.

    Raises:
        UserError: the teacher is no better than chance on the validation split.
        Diverged: a loss was not finite.
    """
    experiment, dataset, ranks = work.experiment, shared.dataset, reporter.ranks
    validation = open_images(work, dataset.val, ranks)
    pixels = work.student_pixels(dataset)
    networks = error = None
    try:
        networks = build_networks(work, shared, pixels, ranks)
    except UserError as raised:
        error = str(raised)
    # Were only some ranks to give up, the others would wait for them for ever.
    for message in _of_all_ranks(error, ranks):
        if message is not None:
            raise UserError(message)
    assert networks is not None
    student, teacher = networks

    computation = computation_of(work, shared, student, teacher, ranks)
    frozen, teacher_scores = frozen_teacher(work, teacher, computation, dataset, validation, ranks)
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
    training = open_images(work, dataset.train, ranks)
    recipe = build_recipe(
        experiment,
        pixels,
        precision=computation.student,
        channels_last=channels_last,
        cuda_graphs=computation.cuda_graphs,
    )
    last = loop.train(
        distiller,
        teaching_of(work, shared, frozen, training, recipe, ranks),
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
    test = open_images(work, wanted, ranks) if wanted is not None else None
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

"""The frozen teacher of a run: a fast copy to learn from, and the scores of the one that came."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch.utils.dlpack import from_dlpack

from dcd_core import FeatureModel, FrozenTeacher
from orchestrator.build import example_images
from orchestrator.data import Dataset
from orchestrator.errors import UserError
from orchestrator.evaluation import (
    PixelStatistics,
    Scored,
    Scores,
    agreement,
    evaluate,
    score_metrics,
)
from orchestrator.reporter import Ranks


def freeze(
    teacher: FeatureModel,
    dataset: Dataset,
    pixels: PixelStatistics,
    *,
    precision: torch.dtype,
    ranks: Ranks,
) -> FrozenTeacher:
    """A copy that is fast, beside the teacher itself, which is scored as it came."""
    return FrozenTeacher(
        copy.deepcopy(teacher),
        images_example=example_images(dataset, pixels).to(ranks.device),
        precision=precision,
    )


def score_teacher(
    teacher: FeatureModel,
    frozen: FrozenTeacher,
    dataset: Dataset,
    pixels: PixelStatistics,
    *,
    validation: Scored,
    ranks: Ranks,
    known: Mapping[str, float] | None,
    min_top1: float | None,
) -> dict[str, float]:
    """Its scores on the validation images.

    In half precision, also how often the fast copy answers as the teacher itself does.

    Args:
        teacher: as it came.
        frozen: its copy.
        dataset: the images.
        pixels: what it sees.
        validation: the dataset's validation images.
        ranks: the processes that train together.
        known: the scores, where another run has measured them on the same images.
        min_top1: the least top-1 in percent; None for chance.

    Raises:
        UserError: it is no better than that.
    """
    if known is not None:
        metrics = dict(known)
    else:
        crop = dataset.crop_size
        scores = evaluate(teacher, validation, pixels=pixels, ranks=ranks, crop_size=crop)
        metrics = teacher_metrics("val", scores)
        if frozen.precision != torch.float32:
            metrics["teacher/val_agreement"] = agreement(
                teacher, frozen, validation, pixels=pixels, ranks=ranks, crop_size=crop
            )
    check_teacher(metrics["teacher/val_top1"], dataset, min_top1=min_top1)
    return metrics


def check_teacher(top1: float, dataset: Dataset, *, min_top1: float | None) -> None:
    """Refuse a teacher that is no better than chance, or than what was asked for.

    Chance is the share of the most frequent validation class, plus three standard errors but no
    more than halfway to 100 %: a good teacher passes on a small or imbalanced split too.
    """
    labels = from_dlpack(dataset.val.labels)
    share = labels.bincount().max().item() / len(labels)
    margin = min(3 * (share * (1 - share) / len(labels)) ** 0.5, (1 - share) / 2)
    chance = 100 * (share + margin)
    limit = chance if min_top1 is None else min_top1
    if top1 < limit:
        raise UserError(
            f"teacher: its validation top-1 is {top1:.2f} %, below "
            + (f"chance level ({limit:.2f} %)" if min_top1 is None else f"min_top1 {limit:g} %")
            + ": check teacher.normalize, the order of the classes and the checkpoint, or set "
            "teacher.min_top1: 0 to go on regardless"
        )


def knows_the_classes(teacher: FeatureModel, dataset: Dataset) -> bool:
    """Whether a teacher's answers can be scored; only the features of another one are of use."""
    return teacher.num_classes == dataset.num_classes


def teacher_metrics(split: str, scores: Scores) -> dict[str, float]:
    """A teacher's scores under their metric names."""
    return {f"teacher/{k.replace('/', '_')}": v for k, v in score_metrics(split, scores).items()}

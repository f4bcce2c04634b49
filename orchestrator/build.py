"""From sections of the spec to objects. The one place where that happens, but for networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dcd_core import (
    Distiller,
    FeatureModel,
    Objective,
    crop_flip,
    default_init_bias,
    mix,
    normalize,
    random_resized_crop,
)
from dcd_core.models import default_hints
from dcd_core.objectives import Method, NetworkSizes, Sizes
from orchestrator.batches import Recipe
from orchestrator.data import Dataset
from orchestrator.errors import UserError
from orchestrator.evaluation import PixelStatistics, as_evaluated
from orchestrator.loop import HEADS_STREAM
from orchestrator.schedule import lr_factor
from orchestrator.spec import (
    DataSpec,
    Experiment,
    HintLayers,
    Normalization,
    ObjectiveSpec,
    OptimizerSpec,
)
from orchestrator.spec.methods import base_name, find_method


def student_pixels(spec: DataSpec, dataset: Dataset) -> PixelStatistics:
    """What the student sees: the spec's normalisation, or the one measured on its images."""
    return as_pixels(spec.normalize) or PixelStatistics(dataset.mean, dataset.std)


def as_pixels(normalization: Normalization | None) -> PixelStatistics | None:
    """The spec's section as plain values."""
    return PixelStatistics(normalization.mean, normalization.std) if normalization else None


def feature_layers(spec: ObjectiveSpec) -> dict[str, str | None]:
    """The feature layer of either network."""
    layers = spec.feature_layer
    if layers is None or isinstance(layers, str):
        return {"student": layers, "teacher": layers}
    return {"student": layers.student, "teacher": layers.teacher}


def build_objective(spec: ObjectiveSpec) -> Callable[[int], Objective]:
    """The loss of each epoch, counted from 1."""

    def objective(epoch: int) -> Objective:
        now = spec.at(epoch)
        return Objective(
            ce_weight=now.ce_weight,
            kd_weight=now.kd_weight,
            kd_temperature=now.kd_temperature,
            dcd_weight=now.dcd_weight,
            consistency_weight=now.consistency_weight,
            contrast=now.contrast,
            negatives=now.negatives,
            method_weight=now.method_weight,
            method=base_name(now.method) if find_method(now.method) is not None else None,
        )

    return objective


def build_distiller(
    student: FeatureModel,
    teacher_dim: int | None,
    spec: ObjectiveSpec,
    *,
    micro_batch_size: int,
    seed: int,
    teacher_hints: tuple[tuple[int, int, int], ...] = (),
    train_labels: Tensor | None = None,
) -> Distiller:
    """All that is learned: the student and, for DCD, the heads and scalars, or another method.

    Args:
        student: the network to train.
        teacher_dim: of the teacher's features; None without a teacher.
        spec: the loss.
        micro_batch_size: N.
        seed: of the student.
        teacher_hints: (C, h, w) of the teacher's intermediate features.
        train_labels: classes of the training split, (M,) int64.
    """
    sigmoid = spec.contrast == "sigmoid"
    bias = spec.init_bias
    if bias == "auto":
        bias = default_init_bias(micro_batch_size) if sigmoid and spec.uses_dcd else 0.0
    with torch.random.fork_rng(devices=[]):
        # A stream of its own: with the student's seed the heads would repeat its first draws.
        torch.manual_seed(int(mix(seed, 0, torch.tensor([0]), HEADS_STREAM)))
        method = None
        if spec.uses_method and teacher_dim is not None:
            method = build_method(
                spec,
                Sizes(
                    NetworkSizes(student.feature_dim, student.hint_shapes),
                    NetworkSizes(teacher_dim, teacher_hints),
                    train_labels,
                    seed,
                ),
            )
        return Distiller(
            student,
            teacher_dim=teacher_dim if spec.uses_dcd else None,
            projection_dim=spec.projection_dim,
            init_temperature=spec.init_temperature,
            min_temperature=spec.min_temperature,
            init_bias=bias,
            learn_bias=sigmoid,
            method=method,
        )


def build_method(spec: ObjectiveSpec, sizes: Sizes) -> Method:
    """The term that a method beside DCD adds, with all that it learns.

    Raises:
        UserError: it does not suit the networks.
    """
    module = find_method(spec.method)
    assert module is not None  # or the spec would have no weight for it
    try:
        return module(sizes, **spec.method_args)
    except ValueError as error:
        raise UserError(f"objective.method {spec.method!r}: {error}") from error


def capture_hints(
    spec: ObjectiveSpec,
    student: FeatureModel,
    teacher: FeatureModel,
    *,
    student_example: Tensor,
    teacher_example: Tensor,
) -> None:
    """Let both networks give the intermediate features that the method compares, if any.

    Args:
        spec: the loss.
        student: changed in place.
        teacher: changed in place.
        student_example: images as the student gets them, (2, C, H, W).
        teacher_example: images as the teacher gets them.

    Raises:
        UserError: a layer is unknown, or must be named.
    """
    module = find_method(spec.method)
    if module is None or not spec.uses_hints:
        return
    try:
        if spec.hint_layers is None:
            own, wanted = default_hints(student.model, teacher.model, module.hints)
        elif isinstance(spec.hint_layers, HintLayers):
            own, wanted = map(_paths, (spec.hint_layers.student, spec.hint_layers.teacher))
        else:
            own = wanted = _paths(spec.hint_layers)
        student.capture_hints(own, images_example=student_example)
        teacher.capture_hints(wanted, images_example=teacher_example)
        shapes = [*zip(student.hint_shapes, teacher.hint_shapes, strict=False)]
        if module.compares_pixels and all(min(s[1] * s[2], t[1] * t[2]) == 1 for s, t in shapes):
            raise ValueError("all of these layers give one pixel: name earlier ones")
    except ValueError as error:
        raise UserError(f"objective.hint_layers (method {spec.method!r}): {error}") from error


def _paths(layers: str | tuple[str, ...]) -> list[str]:
    return [layers] if isinstance(layers, str) else list(layers)


def build_optimizer(distiller: Distiller, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer, with the scalars in a group of their own; one kernel a step on a GPU."""
    fused = all(parameter.is_cuda for parameter in distiller.parameters())
    groups = distiller.parameter_groups(
        lr=spec.lr, weight_decay=spec.weight_decay, scalar_lr_ratio=spec.scalar_lr_ratio
    )
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.momentum, 0.999), fused=fused)
    return torch.optim.SGD(
        groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, fused=fused
    )


def build_recipe(
    experiment: Experiment,
    pixels: PixelStatistics,
    *,
    precision: torch.dtype,
    channels_last: bool,
    cuda_graphs: bool = False,
) -> Recipe:
    data, train, schedule = experiment.data, experiment.train, experiment.schedule

    def augment(images: Tensor, indices: Tensor, view: int) -> Tensor:
        if data.augment == "none":
            return images
        if data.augment == "imagenet":
            return random_resized_crop(
                images,
                seed=data.seed,
                epoch=view,
                indices=indices,
                size=data.crop_size,
                flip=data.flip,
            )
        return crop_flip(
            images,
            seed=data.seed,
            epoch=view,
            indices=indices,
            padding=data.crop_padding,
            flip=data.flip,
        )

    return Recipe(
        epochs=train.epochs,
        batch_size=train.batch_size,
        accumulate=train.accumulate,
        precision=precision,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        max_grad_norm=experiment.optimizer.max_grad_norm,
        seed=experiment.seed,
        data_seed=data.seed,
        augment=augment,
        lr_factor=lambda epoch: lr_factor(schedule, epoch=epoch, epochs=train.epochs),
        student_pixels=pixels,
        cuda_graphs=cuda_graphs,
        views=num_views(experiment),
        crop_size=data.evaluation_crop,
    )


def num_views(experiment: Experiment) -> int | None:
    """After how many epochs images look as in the first again; None for never."""
    # Without augmentation, an image is the same in every epoch.
    return 1 if experiment.data.augment == "none" else experiment.teacher_cache.views


def example_images(dataset: Dataset, pixels: PixelStatistics) -> Tensor:
    """Two real images as a network gets them, float (2, C, H, W)."""
    images = as_evaluated(torch.tensor(dataset.train.examples), dataset.crop_size)
    return normalize(images, mean=pixels.mean, std=pixels.std)

"""Networks by name: built in, of torchvision, timm or the user's own, or a tracked student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dcd_core.features import FeatureModel
from dcd_core.models import MODELS, build_model
from dcd_core.step import freeze_teacher
from orchestrator import timm_source, torchvision_weights
from orchestrator.checkpoint_file import load_weights, read_state_dict
from orchestrator.error_text import nearest
from orchestrator.errors import UserError, naming
from orchestrator.function_source import build_from_function
from orchestrator.image_fit import check_forward
from orchestrator.spec import StudentSpec, TeacherSpec
from orchestrator.timm_source import TIMM, build_timm
from orchestrator.torchvision_source import build_torchvision
from orchestrator.torchvision_weights import TORCHVISION
from orchestrator.weights_facts import WeightsFacts

_MLFLOW = "mlflow:"


def build_student(
    spec: StudentSpec,
    *,
    num_classes: int,
    images_example: Tensor,
    seed: int,
    feature_layer: str | None,
    state: Mapping[str, Tensor] | None = None,
) -> FeatureModel:
    """Build the network that is trained; its initialisation depends on ``seed`` alone.

    Args:
        spec: the experiment's student section.
        num_classes: K, of the data.
        images_example: a real normalised batch, float (B, C, H, W) on the CPU.
        seed: of the initialisation.
        feature_layer: dotted path of the module whose output is the feature; None finds it.
        state: weights to start from that were read already; else ``spec.checkpoint`` is read.

    Raises:
        UserError: there is no such network, it cannot take these images, its number of classes is
            not the data's, it has auxiliary classifiers, or the checkpoint does not fit.
    """
    student = _build(
        spec,
        role="student",
        num_classes=num_classes,
        images_example=images_example,
        seed=seed,
        feature_layer=feature_layer,
        state=state,
    )
    if student.num_classes != num_classes:
        raise UserError(
            f"student.source: {spec.source} gives {student.num_classes} classes and the data has "
            f"{num_classes}: let its function take num_classes"
        )
    # torchvision's name, and timm's, for what makes a network return more than logits in training.
    if any(getattr(module, "aux_logits", False) for module in student.modules()):
        raise UserError(
            f"student.source: {spec.source} has auxiliary classifiers, which have no part in any "
            "loss here: build it with aux_logits: false"
        )
    return student


def build_teacher(
    spec: TeacherSpec,
    *,
    num_classes: int,
    images_example: Tensor,
    feature_layer: str | None,
    state: Mapping[str, Tensor] | None = None,
) -> FeatureModel:
    """Build the frozen network that the student learns from.

    Its number of classes is that of its library's weights or of the tracked student, else
    ``spec.num_classes``, else the data's; `check_classes` says whether that can work.

    Args:
        spec: the experiment's teacher section.
        num_classes: of the data.
        images_example: a real batch as the teacher sees it, float (B, C, H, W) on the CPU.
        feature_layer: dotted path of the module whose output is the feature; None finds it.
        state: weights that were read or trained already; else ``spec.checkpoint`` is read.

    Raises:
        UserError: there is no such network, it cannot take these images, it has another number of
            classes than ``spec.num_classes``, or the checkpoint does not fit.
    """
    wanted = spec.num_classes or num_classes
    if spec.weights is not None:
        # A new classifier would be untrained, so the teacher keeps the one of its weights.
        with naming("teacher.weights"):
            wanted = weights_facts(spec.source, spec.weights).num_classes
    teacher = _build(
        spec,
        role="teacher",
        num_classes=wanted,
        images_example=images_example,
        seed=0,
        feature_layer=feature_layer,
        state=state,
    )
    if spec.num_classes is not None and teacher.num_classes != spec.num_classes:
        raise UserError(
            f"teacher.num_classes: {spec.source} has {teacher.num_classes} classes and not "
            f"{spec.num_classes}: give {teacher.num_classes}, or leave it out"
        )
    freeze_teacher(teacher)
    return teacher


def build_network(
    source: str,
    *,
    args: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    weights: str | None = None,
) -> nn.Module:
    """Build a plain classifier, images (B, C, H, W) -> logits (B, K).

    Args:
        source: a built-in name, ``torchvision:NAME``, ``timm:NAME``, ``module:function`` or
            ``mlflow:URI``. The function gets ``num_classes`` and ``in_channels`` when its signature
            names them (``num_classes`` through ``**kwargs`` too), and may live in the working
            directory.
        args: further keyword arguments of the library's builder or the function.
        num_classes: K. What ``mlflow:`` names brings its own.
        in_channels: C. torchvision's networks take 3, whatever this says.
        weights: torchvision's by enum name, timm's by tag; their classifier is replaced by a new
            one when it has another number of classes.

    Raises:
        UserError: there is no such network, or it cannot be built from these arguments.
    """
    if source.startswith(TORCHVISION):
        return build_torchvision(source, args, num_classes=num_classes, weights=weights)
    if source.startswith(TIMM):
        return build_timm(
            source, args, num_classes=num_classes, in_channels=in_channels, weights=weights
        )
    if weights is not None:
        _refuse_weights(source)
    if source.startswith(_MLFLOW):
        _refuse_args(source, args)
        # Imported here, because that module rebuilds a student with this very function.
        from orchestrator.student_model import load_student

        return load_student(source.removeprefix(_MLFLOW))
    if ":" in source:
        offered = {"num_classes": num_classes, "in_channels": in_channels}
        return build_from_function(source, args, offered=offered)
    if source not in MODELS:
        raise UserError(
            f"no built-in network {source!r}{nearest(source, MODELS)}; others are named "
            f"{TORCHVISION}NAME, {TIMM}NAME, module:function or {_MLFLOW}URI"
        )
    _refuse_args(source, args)
    return build_model(source, num_classes=num_classes, in_channels=in_channels)


def weights_facts(source: str, weights: str) -> WeightsFacts:
    """Facts about weights that a library brings along, without loading them.

    Args:
        source: ``torchvision:NAME`` or ``timm:NAME``.
        weights: their name or tag there.

    Raises:
        UserError: there is no such network or no such weights.
    """
    if source.startswith(TORCHVISION):
        return torchvision_weights.weights_facts(source, weights)
    if source.startswith(TIMM):
        return timm_source.weights_facts(source, weights)
    return _refuse_weights(source)


def check_classes(teacher: FeatureModel, *, num_classes: int, uses_kd: bool) -> str | None:
    """Whether the teacher's classes fit the data's.

    Args:
        teacher: the teacher.
        num_classes: of the data.
        uses_kd: whether the objective compares class probabilities.

    Returns:
        A note for the log when they differ and only features are used; None when they agree.

    Raises:
        UserError: they differ, and the objective compares class probabilities.
    """
    if teacher.num_classes == num_classes:
        return None
    if uses_kd:
        raise UserError(
            f"teacher: it has {teacher.num_classes} classes and the data {num_classes}, so its "
            "class probabilities mean nothing here: set objective.kd_weight: 0 (a "
            "method that compares features, such as dcd), or use a teacher of these classes"
        )
    return (
        f"the teacher has {teacher.num_classes} classes and the data {num_classes}: only its "
        "features are used"
    )


def num_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _build(
    spec: StudentSpec | TeacherSpec,
    *,
    role: str,
    num_classes: int,
    images_example: Tensor,
    seed: int,
    feature_layer: str | None,
    state: Mapping[str, Tensor] | None,
) -> FeatureModel:
    """Build a network, try it on real images, load its weights, find its features."""
    where = f"{role}.source: {spec.source}"
    with naming(f"{role}.source"), _seeded(seed):
        network = build_network(
            spec.source,
            args=spec.args,
            num_classes=num_classes,
            in_channels=images_example.shape[1],
            weights=spec.weights,
        )
        check_forward(
            network, images_example, source=spec.source, args=spec.args, weights=spec.weights
        )
    with naming(f"{role}.checkpoint"):
        if state is None and spec.checkpoint is not None:
            state = read_state_dict(spec.checkpoint)
        if state is not None:
            load_weights(network, state, where=spec.checkpoint or spec.source)
    try:
        return FeatureModel(network, images_example=images_example, feature_layer=feature_layer)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _refuse_weights(source: str) -> NoReturn:
    raise UserError(
        f"{source}: weights are torchvision's or timm's: use them with {TORCHVISION}NAME or "
        f"{TIMM}NAME, or give a checkpoint"
    )


def _refuse_args(source: str, args: Mapping[str, Any]) -> None:
    if args:
        raise UserError(
            f"{source}: takes no args, and was given {', '.join(args)}: they are for "
            f"{TORCHVISION}NAME, {TIMM}NAME and module:function"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's generator, on which networks are built, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield

"""All that is learned: the student, the projection heads, the temperature and the bias, and what
another method learns.

Shape letters: B images, C channels, H x W pixels, K classes, D feature dimensions, P projection
dimensions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcd_core._precision import full_precision
from dcd_core.batch_norm import is_synchronised
from dcd_core.features import FeatureModel, HintedOutput, ModelOutput
from dcd_core.objectives.method import Lesson, Method

_SHORTEST = 1e-6
"""Embeddings shorter than this are not stretched to unit length: at 0 there is no direction, and
the gradient of the normalisation grows as 1 / length."""


class DistillerOutput(NamedTuple):
    """What a ``Distiller`` returns.

    Without DCD's heads, the embeddings and scalars are None, and without a method its term is.
    """

    logits: Tensor  # (B, K)
    student_embedding: Tensor | None  # (B, P), unit length, at least float32
    teacher_embedding: Tensor | None  # (B, P), unit length, at least float32
    log_temperature: Tensor | None  # ()
    bias: Tensor | None  # ()
    method_term: Tensor | None = None  # (B,), at least float32


class Distiller(nn.Module):
    """The module that the optimizer, DDP and the checkpoint get. The teacher stays outside.

    Args:
        student: the network to train.
        teacher_dim: dimension of the teacher's features; None for CE or KD alone, which have
            neither heads nor scalars.
        projection_dim: P.
        init_temperature: where T starts. The paper's tau = 1 is T = exp(-1).
        min_temperature: lower limit of T, kept by ``limit_temperature_``. The paper's is 0.1.
        init_bias: where b starts.
        learn_bias: whether b is trained. It acts in the sigmoid contrast only; under softmax its
            gradient is rounding noise, which an adaptive optimizer would amplify.
        method: another term that compares both networks, with all that it learns.

    Raises:
        ValueError: not 0 < min_temperature <= init_temperature.
    """

    def __init__(
        self,
        student: FeatureModel,
        *,
        teacher_dim: int | None,
        projection_dim: int = 128,
        init_temperature: float = math.exp(-1),
        min_temperature: float = 0.1,
        init_bias: float = 0.0,
        learn_bias: bool = False,
        method: Method | None = None,
    ) -> None:
        super().__init__()
        if not 0 < min_temperature <= init_temperature < math.inf:
            raise ValueError(
                f"init_temperature {init_temperature} must be finite and at least min_temperature "
                f"{min_temperature}, which must be above 0"
            )
        self.student = student
        self.method = method
        self.min_temperature = min_temperature
        self.student_head: nn.Linear | None = None
        self.teacher_head: nn.Linear | None = None
        self.log_temperature: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if teacher_dim is not None:
            self.student_head = nn.Linear(student.feature_dim, projection_dim)
            self.teacher_head = nn.Linear(teacher_dim, projection_dim)
            self.log_temperature = nn.Parameter(torch.tensor(math.log(init_temperature)))
            self.bias = nn.Parameter(torch.tensor(float(init_bias)), requires_grad=learn_bias)

    @property
    def temperature(self) -> Tensor | None:
        """T, detached; None without heads."""
        return None if self.log_temperature is None else self.log_temperature.detach().exp()

    def forward(
        self,
        images: Tensor,
        teacher_features: Tensor | None = None,
        lesson: Lesson | None = None,
    ) -> DistillerOutput:
        """Run the student, project both features, and compute the method's term.

        Args:
            images: (B, C, H, W); B may be 0 on a rank without rows.
            teacher_features: the frozen teacher's features of the same images, (B, D); needed if
                and only if there are heads.
            lesson: what the method learns from beside the student; without one it rests.

        Raises:
            ValueError: ``teacher_features`` is missing, unwanted or of the wrong shape, or the
                lesson is unwanted.
        """
        student = HintedOutput(*self._run_student(images))
        if lesson is not None and self.method is None:
            raise ValueError("a lesson is given but there is no method to learn from it")
        method_term = None if self.method is None else self.method(student, lesson)
        if self.student_head is None or self.teacher_head is None:
            if teacher_features is not None:
                raise ValueError("teacher_features is given but teacher_dim was None: no heads")
            return DistillerOutput(student.logits, None, None, None, None, method_term)
        expected = (images.shape[0], self.teacher_head.in_features)
        if teacher_features is None or teacher_features.shape != expected:
            found = None if teacher_features is None else tuple(teacher_features.shape)
            raise ValueError(f"teacher_features must have shape {expected}, found {found}")
        assert self.log_temperature is not None  # as the heads
        assert self.bias is not None
        return DistillerOutput(
            logits=student.logits,
            student_embedding=_embed(
                student.features, self.student_head.weight, self.student_head.bias
            ),
            teacher_embedding=_embed(
                teacher_features, self.teacher_head.weight, self.teacher_head.bias
            ),
            # Not the parameters themselves: DDP looks for used parameters behind the outputs, and
            # takes a parameter that is an output for an unused one.
            log_temperature=self.log_temperature.clone(),
            bias=self.bias.clone(),
            method_term=method_term,
        )

    @torch.no_grad()
    def limit_temperature_(self) -> None:
        """Raise T to ``min_temperature`` where it fell below; call it after the optimizer's step.

        A limit inside the forward pass would cut the gradient off, and T could not come back.
        """
        if self.log_temperature is not None:
            self.log_temperature.clamp_(min=math.log(self.min_temperature))

    def parameter_groups(
        self, *, lr: float, weight_decay: float, scalar_lr_ratio: float
    ) -> list[dict[str, Any]]:
        """Groups for the optimizer: "weights", and "scalars" where there are any to train.

        Args:
            lr: learning rate of the weights.
            weight_decay: of the weights; the scalars have none.
            scalar_lr_ratio: learning rate of T and b relative to ``lr``.
        """
        scalars = [p for p in (self.log_temperature, self.bias) if p is not None]
        excluded = {id(p) for p in scalars}
        weights = [p for p in self.parameters() if p.requires_grad and id(p) not in excluded]
        groups: list[dict[str, Any]] = [
            {"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay}
        ]
        if trainable := [p for p in scalars if p.requires_grad]:
            groups.append(
                {
                    "name": "scalars",
                    "params": trainable,
                    "lr": lr * scalar_lr_ratio,
                    "weight_decay": 0.0,
                }
            )
        return groups

    def _run_student(self, images: Tensor) -> ModelOutput | HintedOutput:
        """The student's output, for no images too.

        Synchronised BatchNorm needs every rank in its collectives, and can do with no rows. Any
        other student is not run: many layers refuse an empty batch, and on made-up images one could
        divide by zero, which turns the zero gradients into NaN.
        """
        if images.shape[0] > 0 or is_synchronised(self.student):
            output: ModelOutput | HintedOutput = self.student(images)
            return output
        # DDP waits for a gradient of every parameter: the sum over no element gives zeros.
        zero = images.new_zeros(())
        for parameter in self.student.parameters():
            zero = zero + parameter.reshape(-1)[:0].sum()
        sizes = ((self.student.num_classes,), (self.student.feature_dim,))
        logits, features, *hints = (
            images.new_zeros(0, *size) + zero for size in (*sizes, *self.student.hint_shapes)
        )
        return HintedOutput(logits, features, tuple(hints))


@full_precision
def _embed(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Project features (B, D) and scale them to unit length: (B, P)."""
    return F.normalize(F.linear(features.to(weight.dtype), weight, bias), dim=1, eps=_SHORTEST)

"""Small inputs for the tests of the methods, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dcd_core.features import HintedOutput
from dcd_core.objectives import METHODS, Lesson, Method, NetworkSizes, Rows, Sizes

NUM_CLASSES = 4
STUDENT = NetworkSizes(6, ((3, 4, 4), (5, 2, 2)))
TEACHER = NetworkSizes(5, ((4, 4, 4), (6, 4, 4)))
TRAIN_LABELS = torch.arange(12) % 3

SMALL: dict[str, dict[str, Any]] = {
    "crd": {"num_negatives": 7, "projection_dim": 3},
    "crd_batch": {"projection_dim": 3},
    "rrd": {"queue_size": 9, "projection_dim": 3},
}
"""Hyperparameters that keep the tests small."""


def build(
    name: str, *, student: NetworkSizes = STUDENT, teacher: NetworkSizes = TEACHER, **options: Any
) -> Method:
    """A seeded method."""
    torch.manual_seed(2)
    method = METHODS[name](
        Sizes(student, teacher, TRAIN_LABELS, seed=4), **{**SMALL.get(name, {}), **options}
    )
    return method.double()


def noise(sizes: NetworkSizes, num_images: int, *, seed: int) -> HintedOutput:
    """What a network might say."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(num_images, *shape, generator=draw, dtype=torch.float64)

    hints = tuple(random(*shape) for shape in sizes.hints)
    return HintedOutput(random(NUM_CLASSES), random(sizes.feature_dim), hints)


def with_gradient(output: HintedOutput) -> HintedOutput:
    """The same numbers as leaves of a graph."""
    logits, features, hints = output
    leaves = (part.detach().clone().requires_grad_() for part in (logits, features, *hints))
    return HintedOutput(next(leaves), next(leaves), tuple(leaves))


def leaves(output: HintedOutput) -> list[Tensor]:
    """All parts of an output."""
    return [output.logits, output.features, *output.hints]


def lesson(teacher: HintedOutput, *, seed: int = 0, epoch: int = 30) -> Lesson:
    """All of a teacher's images in this process; late enough for any warm-up to be over."""
    num_images = len(teacher.logits)
    order = torch.randperm(len(TRAIN_LABELS), generator=torch.Generator().manual_seed(seed))
    positions = order[:num_images]
    return Lesson(teacher, TRAIN_LABELS[positions], Rows([num_images]), positions, epoch)


def says(
    num_images: int,
    *,
    logits: Sequence[Any] | None = None,
    features: Sequence[Any] | None = None,
    hints: Sequence[Any] = (),
) -> HintedOutput:
    """An output with numbers of a calculation by hand; what is not given is zero."""

    def numbers(values: Sequence[Any] | None) -> Tensor:
        if values is None:
            return torch.zeros(num_images, 2, dtype=torch.float64)
        return torch.tensor(values, dtype=torch.float64)

    return HintedOutput(numbers(logits), numbers(features), tuple(map(numbers, hints)))


def learn(
    method: Method,
    student: HintedOutput,
    teacher: HintedOutput,
    *,
    labels: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    epoch: int = 30,
) -> Tensor:
    """The loss of images that all lie in this process."""
    num_images = len(student.logits)
    given = Lesson(
        teacher,
        torch.tensor(range(num_images) if labels is None else labels),
        Rows([num_images]),
        None if positions is None else torch.tensor(positions),
        epoch,
    )
    return method(student, given).mean()


@torch.no_grad()
def use_identity(*layers: torch.nn.Linear) -> None:
    """Let linear layers give what they get."""
    for layer in layers:
        torch.nn.init.eye_(layer.weight)
        layer.bias.zero_()

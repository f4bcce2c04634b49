"""What every method beside DCD has in common: what it is given, and what it gives.

Shape letters: n images on this rank, N on all ranks, M in the training split, K classes, D feature
dimensions, C channels, h x w pixels of a feature map.
"""

from __future__ import annotations

import abc
import inspect
import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcd_core._names import nearest
from dcd_core._precision import at_least_float32
from dcd_core.distributed import gather_rows
from dcd_core.features import HintedOutput


class Rows(NamedTuple):
    """How the N images of a micro-batch lie on the ranks."""

    counts: Sequence[int]
    """Images on each rank, known to all."""
    rank: int = 0
    """This rank's place in ``counts``."""
    group: dist.ProcessGroup | None = None
    """The ranks; by default all."""

    @property
    def num_images(self) -> int:
        """N."""
        return sum(self.counts)

    @property
    def first(self) -> int:
        """Place of this rank's first image among all N."""
        return sum(self.counts[: self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' rows, (n, ...) to (N, ...), with gradient to the rank that each came from."""
        return gather_rows(rows, self.counts, self.group)


class Lesson(NamedTuple):
    """What a method learns from, beside what the student says."""

    teacher: HintedOutput
    """What the teacher says of this rank's images."""
    labels: Tensor
    """Their classes, (n,) int64."""
    rows: Rows
    positions: Tensor | None = None
    """Of all ranks' images in the training split, (N,) int64, equal on all ranks."""
    epoch: int = 1
    """Number of the epoch, counted from 1."""


class NetworkSizes(NamedTuple):
    """Sizes of what a network gives."""

    feature_dim: int
    """D."""
    hints: tuple[tuple[int, int, int], ...] = ()
    """(C, h, w) of each intermediate feature."""


class Sizes(NamedTuple):
    """What a method is built for."""

    student: NetworkSizes
    teacher: NetworkSizes
    train_labels: Tensor | None = None
    """Classes of the training split, (M,) int64, for methods with ``keeps_images``."""
    seed: int = 0
    """Decides what a method draws at random."""


class Method(nn.Module, abc.ABC):
    """A term of the loss that compares what student and teacher say of the same images.

    A subclass writes ``per_image`` and takes its hyperparameters as keywords of ``__init__``. Its
    parameters are learned with the student, and its buffers are equal on all ranks.

    Args:
        sizes: of both networks and the training split.
    """

    weight: ClassVar[float]
    """Default of the term's weight beside a cross entropy of weight 1."""
    hints: ClassVar[Literal["none", "stages", "middle", "last"]] = "none"
    """Which intermediate features it compares by default: no, every, the middle or the last one of
    the stages' ends."""
    uses_logits: ClassVar[bool] = False
    """Whether the teacher's class probabilities count, and so its classes must be the data's."""
    keeps_images: ClassVar[bool] = False
    """Whether it remembers each image of the training split."""
    compares_pixels: ClassVar[bool] = False
    """Whether intermediate features of one pixel leave it nothing to compare."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        num_student, num_teacher = len(sizes.student.hints), len(sizes.teacher.hints)
        if num_student != num_teacher:
            raise ValueError(
                f"the student gives {num_student} intermediate features and the teacher "
                f"{num_teacher}: name as many hint layers for both"
            )
        if self.hints != "none" and num_student == 0:
            raise ValueError(f"{type(self).__name__} compares intermediate features: name them")
        if self.keeps_images and sizes.train_labels is None:
            raise ValueError(f"{type(self).__name__} needs the classes of the training images")

    def forward(self, student: HintedOutput, lesson: Lesson | None) -> Tensor:
        """The term of each of this rank's images, in float32 at least.

        Args:
            student: what the student says of them.
            lesson: what the teacher says; without one the method rests, and gives zeros.

        Returns:
            (n,), connected to every parameter. The loss is the mean over all N images.
        """
        # DDP waits for a gradient of every parameter, on ranks without images too.
        zero = at_least_float32(student.logits)[:, :0].sum(1)  # (n,)
        for parameter in self.parameters():
            if parameter.requires_grad:
                zero = zero + parameter.reshape(-1)[:0].sum()
        if lesson is None:
            return zero
        with torch.autocast(student.logits.device.type, enabled=False):
            values = self.per_image(
                _full_precision(student), lesson._replace(teacher=_as_given(lesson.teacher))
            )
        return values + zero

    @abc.abstractmethod
    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """The term of each of this rank's images, (n,); their mean over all N is the loss."""


def hyperparameters(method: type[Method]) -> dict[str, object]:
    """A method's keywords and their defaults."""
    parameters = inspect.signature(method.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_hyperparameters(method: type[Method], given: Sequence[str]) -> None:
    """Refuse keywords that a method does not take.

    Raises:
        ValueError: names the nearest one.
    """
    known = hyperparameters(method)
    for name in given:
        if name not in known:
            hint = f"did you mean {nearest(name, known)!r}?" if known else "it takes none"
            raise ValueError(f"{method.__name__} has no hyperparameter {name!r}: {hint}")


def check_number(
    name: str, value: float, *, above: float | None = None, at_least: float | None = None
) -> float:
    """A finite hyperparameter within its range.

    Raises:
        ValueError: it is not.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not is_number
        or not math.isfinite(value)
        or (above is not None and value <= above)
        or (at_least is not None and value < at_least)
    ):
        rule = f"above {above:g}" if above is not None else f"{at_least:g} or more"
        raise ValueError(f"{name} must be a number {rule}, not {value!r}")
    return value


def check_count(name: str, value: int) -> int:
    """A hyperparameter that counts something.

    Raises:
        ValueError: it is no integer, or below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer, 1 or more, not {value!r}")
    return value


def _as_given(teacher: HintedOutput) -> HintedOutput:
    """What the teacher says, which nothing learns through."""
    output = _full_precision(teacher)
    hints = tuple(hint.detach() for hint in output.hints)
    return HintedOutput(output.logits.detach(), output.features.detach(), hints)


def _full_precision(output: HintedOutput) -> HintedOutput:
    return HintedOutput(
        at_least_float32(output.logits),
        at_least_float32(output.features),
        tuple(at_least_float32(hint) for hint in output.hints),
    )

"""CRD: Contrastive Representation Distillation (Tian et al., ICLR 2020, arXiv 1910.10699).

Unit embeddings z^s_i, z^t_i of penultimate features are contrasted with a bank of each network's
embeddings of all M training images, v^s and v^t. For the student as anchor, image i itself is the
positive, and m images of other classes the negatives (noise-contrastive estimation, equations 17 to
19):

    h(z, v) = exp(<z, v> / T) / (exp(<z, v> / T) + Z m / M)
    student = mean_i -log h(z^s_i, v^t_i) - sum_k log(1 - h(z^s_i, v^t_k))
    teacher = the same with student and teacher exchanged
    crd     = student + teacher

Z is M times the mean of exp(<z, v> / T) over the first micro-batch, one for each anchor, and stays.
After each micro-batch, its images' entries move: v <- unit(momentum v + (1 - momentum) z).

Defaults: weight 0.8, m 16384, T 0.07, momentum 0.5, 128 dimensions, of the authors' code for
CIFAR-100 (the paper reports T 0.1 there). That code draws m negatives for each anchor; here a
micro-batch draws ``num_negatives`` images, each anchor leaves those of its own class out, and m is
what remains, so that one matrix product suffices: 1 % fewer with 100 even classes, 10 % with ten.

The bank takes 2 M P numbers (CIFAR: 51 MB), is kept in checkpoints, and moves with the run.

Over ranks: the draw depends on the seed, the epoch and the first image of the micro-batch, which
no other of the epoch holds. So a resumed run draws the same, and so do all ranks. Every rank enters
the embeddings of the global batch, and the banks are equal.

Shape letters: n images on this rank, N on all ranks, M in the training split, P dimensions, m
negatives.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dcd_core.counter_hash import mix
from dcd_core.features import HintedOutput
from dcd_core.objectives.layers import Embedding, unit_rows
from dcd_core.objectives.method import Lesson, Method, Sizes, check_count, check_number

_NEGATIVES_STREAM = 13
"""Stream of ``mix``: 0 to 10 are the augmentation's, 11 and 12 the generators'."""


class CRD(Method):
    """The student's embedding of an image finds the teacher's among those of all images.

    Args:
        sizes: of both networks, with the classes of the training images.
        temperature: T.
        num_negatives: images that a micro-batch draws.
        momentum: of the bank's entries.
        projection_dim: P.
    """

    weight: ClassVar[float] = 0.8
    keeps_images: ClassVar[bool] = True
    student_bank: Tensor
    teacher_bank: Tensor
    train_labels: Tensor
    log_z: Tensor
    knows_z: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        temperature: float = 0.07,
        num_negatives: int = 16384,
        momentum: float = 0.5,
        projection_dim: int = 128,
    ) -> None:
        super().__init__(sizes)
        self.temperature = check_number("temperature", temperature, above=0)
        self.num_negatives = check_count("num_negatives", num_negatives)
        self.momentum = check_number("momentum", momentum, at_least=0)
        if momentum >= 1:
            raise ValueError(f"momentum must be below 1, not {momentum!r}: the bank would not move")
        check_count("projection_dim", projection_dim)
        self.seed = sizes.seed
        self.student_head = Embedding(sizes.student.feature_dim, projection_dim)
        self.teacher_head = Embedding(sizes.teacher.feature_dim, projection_dim)
        assert sizes.train_labels is not None  # `Method` has seen to it
        shape = (len(sizes.train_labels), projection_dim)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, unit_rows(torch.randn(shape)))
        # They are the data's and known wherever the method is built, so no checkpoint needs them.
        self.register_buffer("train_labels", sizes.train_labels.clone(), persistent=False)
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("knows_z", torch.zeros((), dtype=torch.bool))

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equations, (n,)."""
        if lesson.positions is None:
            raise ValueError("CRD needs the positions of the images in the training split")
        rows, positions = lesson.rows, lesson.positions
        own = positions[rows.first : rows.first + len(lesson.labels)]  # (n,)
        anchors = (self.student_head(student.features), self.teacher_head(lesson.teacher.features))
        drawn = self._draw(lesson)  # (m,)
        is_negative = self.train_labels[drawn] != lesson.labels[:, None]  # (n, m)
        scores = [
            _Scores.of(anchor, bank[own], bank[drawn], is_negative, temperature=self.temperature)
            for anchor, bank in zip(anchors, (self.teacher_bank, self.student_bank), strict=True)
        ]
        self._remember(anchors, scores, lesson)
        # Without negatives nothing is told from anything.
        num_negatives = is_negative.sum(1)  # (n,)
        share = num_negatives.clamp_min(1).to(anchors[0].dtype) / len(self.train_labels)
        log_noise = share.log()
        values = sum(
            (each.loss(log_z + log_noise) for each, log_z in zip(scores, self.log_z, strict=True)),
            log_noise.new_zeros(()),
        )
        return values * (num_negatives > 0)

    def _draw(self, lesson: Lesson) -> Tensor:
        """Images, with replacement, of the training split, (m,)."""
        assert lesson.positions is not None
        numbers = torch.arange(self.num_negatives, device=self.train_labels.device)
        numbers = numbers + lesson.positions[0] * self.num_negatives
        drawn = mix(self.seed, lesson.epoch, numbers, _NEGATIVES_STREAM)
        return drawn % len(self.train_labels)

    @torch.no_grad()
    def _remember(
        self, anchors: tuple[Tensor, Tensor], scores: list[_Scores], lesson: Lesson
    ) -> None:
        """Set Z where it is unknown, and move the entries of all ranks' images in the banks."""
        assert lesson.positions is not None
        log_sums = torch.stack([each.log_sum() for each in scores], dim=1)  # (n, 2)
        counts = 1 + scores[0].is_negative.sum(1, keepdim=True)  # (n, 1)
        dim = anchors[0].shape[1]
        gathered = lesson.rows.gather(torch.cat([*anchors, log_sums, counts], dim=1).detach())
        student, teacher, log_sums, counts = gathered.split([dim, dim, 2, 1], dim=1)
        log_mean = log_sums.logsumexp(0) - counts.sum().log()  # (2,)
        log_z = log_mean + math.log(len(self.train_labels))
        self.log_z.copy_(torch.where(self.knows_z, self.log_z, log_z))
        self.knows_z.fill_(True)
        for bank, new in ((self.student_bank, student), (self.teacher_bank, teacher)):
            moved = self.momentum * bank[lesson.positions] + (1 - self.momentum) * new
            bank[lesson.positions] = unit_rows(moved).to(bank.dtype)


class _Scores(NamedTuple):
    """What an anchor has in common with its positive and its negatives, divided by T."""

    positive: Tensor  # (n,)
    negative: Tensor  # (n, m)
    is_negative: Tensor  # (n, m) bool

    @classmethod
    def of(
        cls,
        anchors: Tensor,
        positives: Tensor,
        drawn: Tensor,
        is_negative: Tensor,
        *,
        temperature: float,
    ) -> _Scores:
        """From embeddings (n, P) and entries of the bank, (n, P) and (m, P)."""
        positives, drawn = positives.to(anchors.dtype), drawn.to(anchors.dtype)
        positive = (anchors * positives).sum(1) / temperature
        return cls(positive, anchors @ drawn.T / temperature, is_negative)

    def log_sum(self) -> Tensor:
        """Logarithm of the sum of the exponentials, (n,)."""
        negative = self.negative.masked_fill(~self.is_negative, -math.inf)
        return torch.cat([self.positive[:, None], negative], dim=1).logsumexp(1)

    def loss(self, log_noise: Tensor) -> Tensor:
        """-log h of the positive, and -log(1 - h) of each negative, (n,).

        Args:
            log_noise: log(Z m / M), (n,).
        """
        positive = F.softplus(log_noise - self.positive)
        negative = F.softplus(self.negative - log_noise[:, None])  # (n, m)
        return positive + negative.masked_fill(~self.is_negative, 0.0).sum(1)

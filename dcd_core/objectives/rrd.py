"""RRD: Relational Representation Distillation (Giakoumoglou & Stathaki, arXiv 2407.12073).

Unit embeddings z^s_i, z^t_i of penultimate features are compared with a queue of the teacher's
embeddings m_k of the last images, those of this batch included:

    p^s_i = softmax_k(<z^s_i, m_k> / student_temperature)
    p^t_i = softmax_k(<z^t_i, m_k> / teacher_temperature)
    rrd   = mean_i KL(p^t_i || p^s_i)

It is never below 0, and 0 can be reached with equal temperatures only: with a sharper student,
unit embeddings would have to be shorter. The paper's code has the cross entropy, which differs by
the entropy of p^t_i, a number that the student cannot change. Nothing is learned through p^t_i or
the queue: the teacher's embedding is a random projection that stays what it was, as in the paper's
code.

The queue starts empty, and what it does not hold yet has probability 0. (The paper's code starts
with random vectors.)

Defaults: weight 1, a queue of 16384 and 128 dimensions, of the paper's code for CIFAR-100;
student_temperature 0.02 and teacher_temperature 0.1, as its loss describes them and as the paper
has the student's distribution the sharper one. (Its command line has them the other way round.)

Over ranks: the queue gets the global batch, in the same order on all ranks, and is equal on them.

Shape letters: n images on this rank, N on all ranks, Q places in the queue, P dimensions.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dcd_core.features import HintedOutput
from dcd_core.objectives.layers import Embedding
from dcd_core.objectives.method import Lesson, Method, Sizes, check_count, check_number


class RRD(Method):
    """The student's images resemble those seen lately as the teacher's do.

    Args:
        sizes: of both networks.
        student_temperature: of the student's similarities.
        teacher_temperature: of the teacher's.
        queue_size: Q.
        projection_dim: P.
    """

    weight: ClassVar[float] = 1.0
    queue: Tensor
    num_queued: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        student_temperature: float = 0.02,
        teacher_temperature: float = 0.1,
        queue_size: int = 16384,
        projection_dim: int = 128,
    ) -> None:
        super().__init__(sizes)
        self.student_temperature = check_number("student_temperature", student_temperature, above=0)
        self.teacher_temperature = check_number("teacher_temperature", teacher_temperature, above=0)
        check_count("queue_size", queue_size)
        check_count("projection_dim", projection_dim)
        self.student_head = Embedding(sizes.student.feature_dim, projection_dim)
        self.teacher_head = Embedding(sizes.teacher.feature_dim, projection_dim)
        self.teacher_head.requires_grad_(False)
        self.register_buffer("queue", torch.zeros(queue_size, projection_dim))
        self.register_buffer("num_queued", torch.zeros((), dtype=torch.int64))

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equation, (n,)."""
        own = self.student_head(student.features)  # (n, P)
        wanted = self.teacher_head(lesson.teacher.features)  # (n, P)
        self._enqueue(lesson.rows.gather(wanted))
        log_student = self._log_similarities(own, self.student_temperature)
        log_teacher = self._log_similarities(wanted, self.teacher_temperature)
        return (log_teacher.exp() * (log_teacher - log_student)).sum(1)

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor) -> None:
        """Put embeddings (N, P) in the places of the oldest."""
        size = len(self.queue)
        newest = embeddings[-size:]
        skipped = len(embeddings) - len(newest)
        order = torch.arange(len(newest), device=self.queue.device) + skipped
        self.queue[(self.num_queued + order) % size] = newest
        self.num_queued += len(embeddings)

    def _log_similarities(self, embeddings: Tensor, temperature: float) -> Tensor:
        # A copy: autograd keeps it, and the next batch changes the queue.
        logits = embeddings @ self.queue.clone().T / temperature  # (n, Q)
        is_empty = torch.arange(len(self.queue), device=logits.device) >= self.num_queued  # (Q,)
        # Finite, because the difference of two infinities is not a number.
        lowest = torch.finfo(logits.dtype).min / 2
        return logits.masked_fill(is_empty, lowest).log_softmax(1)

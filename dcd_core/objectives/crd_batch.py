"""CRD in the batch: Contrastive Representation Distillation (Tian et al., ICLR 2020, arXiv
1910.10699) with the images of the batch as negatives and the InfoNCE form of the objective.

With unit embeddings z^s_i, z^t_j of penultimate features, and negatives of other classes:

    crd_batch = mean_i -log exp(<z^s_i, z^t_i> / T) / sum_j exp(<z^s_i, z^t_j> / T)
              + mean_i -log exp(<z^t_i, z^s_i> / T) / sum_j exp(<z^t_i, z^s_j> / T)

where j is i or an image of another class. Its infimum is 0, and it is 0 without negatives. The
memory-bank form, with the paper's own objective, is ``crd``. DCD differs in that it learns T, and
has a consistency in place of the second direction.

Defaults: T 0.07 and 128 dimensions, of the authors' code for CIFAR-100, and the weight 0.8 of the
memory-bank form, whose objective is another.

Over ranks: negatives come from the global batch; each rank does its n x N rows of both directions.

Shape letters: n images on this rank, N on all ranks, P dimensions.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from dcd_core.features import HintedOutput
from dcd_core.objectives.layers import Embedding
from dcd_core.objectives.method import Lesson, Method, Sizes, check_count, check_number
from dcd_core.terms import same_class_mask, softmax_contrast


class CRDBatch(Method):
    """The student's embedding of an image finds the teacher's among those of the batch.

    Args:
        sizes: of both networks.
        temperature: T.
        projection_dim: P.
        negatives: "other_class" or "all" other images.
    """

    weight: ClassVar[float] = 0.8

    def __init__(
        self,
        sizes: Sizes,
        *,
        temperature: float = 0.07,
        projection_dim: int = 128,
        negatives: Literal["other_class", "all"] = "other_class",
    ) -> None:
        super().__init__(sizes)
        self.temperature = check_number("temperature", temperature, above=0)
        check_count("projection_dim", projection_dim)
        if negatives not in ("other_class", "all"):
            raise ValueError(f"negatives must be 'other_class' or 'all', not {negatives!r}")
        self.negatives = negatives
        self.student_head = Embedding(sizes.student.feature_dim, projection_dim)
        self.teacher_head = Embedding(sizes.teacher.feature_dim, projection_dim)

    def per_image(self, student: HintedOutput, lesson: Lesson) -> Tensor:
        """As the equation, (n,)."""
        rows = lesson.rows
        own = self.student_head(student.features)  # (n, P)
        wanted = self.teacher_head(lesson.teacher.features)  # (n, P)
        # One collective for both.
        all_own, all_wanted = rows.gather(torch.cat([own, wanted], dim=1)).chunk(2, dim=1)
        positive = torch.arange(len(own), device=own.device) + rows.first  # (n,)
        excluded = None
        if self.negatives == "other_class":
            excluded = same_class_mask(lesson.labels, rows.gather(lesson.labels), positive)
        student_to_teacher = own @ all_wanted.T / self.temperature  # (n, N)
        teacher_to_student = wanted @ all_own.T / self.temperature  # (n, N)
        return softmax_contrast(student_to_teacher, positive, excluded=excluded) + softmax_contrast(
            teacher_to_student, positive, excluded=excluded
        )

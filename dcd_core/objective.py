"""The DCD objective: Discriminative and Consistent Distillation (arXiv 2407.11802).

    l_ij        = <z^s_i, z^t_j> / T + b
    contrast    = -log softmax_j(l_ij)[i], or sum_j -log sigmoid(+-l_ij) (arXiv 2303.15343)
    consistency = KL(softmax_k(l_ki) || softmax_j(l_ij))
    kd          = kd_temperature^2 KL(teacher_i || student_i)
    total       = ce_weight CE + kd_weight kd
                + dcd_weight (contrast + consistency_weight consistency) + method_weight method

The paper's multiplier exp(tau) is 1 / T, so tau = -log T; its alpha is ``consistency_weight``, its
beta ``dcd_weight`` and its lambda ``kd_weight``. Under softmax, b changes nothing. The last term is
that of another method (``dcd_core.objectives``), where there is one.

Shape letters: n images on this rank, N on all ranks, K classes, P projection dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dcd_core.distiller import DistillerOutput
from dcd_core.distributed import gather_rows
from dcd_core.terms import (
    consistency,
    cross_entropy,
    kd_divergence,
    same_class_mask,
    sigmoid_contrast,
    similarity_logits,
    softmax_contrast,
)


class Losses(NamedTuple):
    """One rank's part of the loss; the mean over ranks is the mean over all N images."""

    total: Tensor
    """The weighted sum, a scalar."""
    terms: dict[str, Tensor]
    """Unweighted scalars of the active terms: "ce", "kd", "contrast", "consistency", or a method's
    name."""


@dataclass(frozen=True)
class Objective:
    """What to minimise. The defaults are the paper's DCD + KD.

    Attributes:
        ce_weight: weight of the cross entropy with the labels.
        kd_weight: weight of the divergence from the teacher's class probabilities.
        kd_temperature: temperature of the class probabilities in that divergence.
        dcd_weight: weight of contrast and consistency together.
        consistency_weight: weight of the consistency beside the contrast.
        contrast: "softmax" (the paper) or "sigmoid" (one decision per pair).
        negatives: "all" (the paper) or "other_class", which leaves images of the anchor's class out
            of the contrast's negatives; the consistency stays.
        method_weight: weight of another method's term, which the distiller computes.
        method: name of that term.

    Raises:
        ValueError: a value is out of range.
    """

    ce_weight: float = 1.0
    kd_weight: float = 1.0
    kd_temperature: float = 4.0
    dcd_weight: float = 1.0
    consistency_weight: float = 0.5
    contrast: Literal["softmax", "sigmoid"] = "softmax"
    negatives: Literal["all", "other_class"] = "all"
    method_weight: float = 0.0
    method: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "ce_weight",
            "kd_weight",
            "dcd_weight",
            "consistency_weight",
            "method_weight",
        ):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a finite number, 0 or more, not {weight}")
        if not (math.isfinite(self.kd_temperature) and self.kd_temperature > 0):
            raise ValueError(f"kd_temperature must be above 0, not {self.kd_temperature}")
        if self.contrast not in ("softmax", "sigmoid"):
            raise ValueError(f"contrast must be 'softmax' or 'sigmoid', not {self.contrast!r}")
        if self.negatives not in ("all", "other_class"):
            raise ValueError(f"negatives must be 'all' or 'other_class', not {self.negatives!r}")
        if self.method_weight > 0 and self.method is None:
            raise ValueError("method_weight is above 0: give the name of the method")
        if self.ce_weight == self.kd_weight == self.dcd_weight == self.method_weight == 0:
            raise ValueError(
                "ce_weight, kd_weight, dcd_weight and method_weight are all 0: nothing to minimise"
            )

    @property
    def uses_teacher_logits(self) -> bool:
        """Whether the teacher's logits are needed."""
        return self.kd_weight > 0

    @property
    def uses_features(self) -> bool:
        """Whether the teacher's features, and so the projection heads, are needed."""
        return self.dcd_weight > 0

    @property
    def uses_method(self) -> bool:
        """Whether another method's term is needed."""
        return self.method_weight > 0

    def __call__(
        self,
        output: DistillerOutput,
        *,
        labels: Tensor,
        teacher_logits: Tensor | None = None,
        counts: Sequence[int] | None = None,
        rank: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> Losses:
        """The loss of one micro-batch that ranks share.

        Each term is W / N times the sum over this rank's rows, where W is the number of ranks: the
        mean over ranks, which DDP takes of the gradients, is the mean over all N images. With one
        rank it is the plain mean. A rank without rows gets zeros that stay connected to the graph,
        as do the DCD terms when N = 1. Only n x N blocks of logits are made.

        Args:
            output: what the distiller returned for this rank's rows.
            labels: classes of this rank's rows, (n,) int64.
            teacher_logits: (n, K), needed when ``uses_teacher_logits``.
            counts: rows on each rank, known to all; by default this process is alone.
            rank: this rank's place in ``counts``.
            group: the ranks; by default all.

        Raises:
            ValueError: an input that an active term needs is missing or has the wrong shape.
        """
        counts = [labels.shape[0]] if counts is None else counts
        self._check(output, labels, teacher_logits, counts, rank)
        per_anchor: dict[str, Tensor] = {}  # each (n,)
        if self.ce_weight > 0:
            per_anchor["ce"] = cross_entropy(output.logits, labels)
        if self.uses_teacher_logits:
            assert teacher_logits is not None
            per_anchor["kd"] = kd_divergence(
                output.logits, teacher_logits, temperature=self.kd_temperature
            )
        if self.uses_features:
            per_anchor |= self._dcd_terms(output, labels, counts=counts, rank=rank, group=group)
        if self.uses_method:
            assert self.method is not None and output.method_term is not None  # checked
            per_anchor[self.method] = output.method_term
        scale = len(counts) / sum(counts)
        terms = {name: scale * values.sum() for name, values in per_anchor.items()}
        weights = {
            "ce": self.ce_weight,
            "kd": self.kd_weight,
            "contrast": self.dcd_weight,
            "consistency": self.dcd_weight * self.consistency_weight,
        }
        if self.method is not None:
            weights[self.method] = self.method_weight
        total = sum((weights[name] * term for name, term in terms.items()), _zero_of(output))
        return Losses(total, terms)

    def _dcd_terms(
        self,
        output: DistillerOutput,
        labels: Tensor,
        *,
        counts: Sequence[int],
        rank: int,
        group: dist.ProcessGroup | None,
    ) -> dict[str, Tensor]:
        student, teacher, log_temperature, bias = output[1:5]
        assert student is not None  # checked, and the others come with it
        assert teacher is not None
        assert log_temperature is not None
        assert bias is not None
        num_rows, dim = student.shape
        with_consistency = self.consistency_weight > 0
        if sum(counts) == 1:  # nothing to compare; `_zero_of` keeps the graph whole
            zero = student.new_zeros(num_rows)
            return {"contrast": zero} | ({"consistency": zero} if with_consistency else {})

        # One collective for both; the students of other ranks matter to the consistency only.
        both = torch.cat([teacher, student], dim=1) if with_consistency else teacher
        gathered = gather_rows(both, counts, group)  # (N, P or 2P)
        positive = torch.arange(num_rows, device=student.device) + sum(counts[:rank])  # (n,)
        rows = similarity_logits(
            student, gathered[:, :dim], log_temperature=log_temperature, bias=bias
        )  # (n, N)
        excluded = None
        if self.negatives == "other_class":
            excluded = same_class_mask(labels, gather_rows(labels, counts, group), positive)
        contrast = softmax_contrast if self.contrast == "softmax" else sigmoid_contrast
        terms = {"contrast": contrast(rows, positive, excluded=excluded)}
        if with_consistency:
            columns = similarity_logits(
                teacher, gathered[:, dim:], log_temperature=log_temperature, bias=bias
            )  # (n, N)
            terms["consistency"] = consistency(rows, columns)
        return terms

    def _check(
        self,
        output: DistillerOutput,
        labels: Tensor,
        teacher_logits: Tensor | None,
        counts: Sequence[int],
        rank: int,
    ) -> None:
        num_rows = output.logits.shape[0]
        if labels.shape != (num_rows,):
            raise ValueError(f"labels has shape {tuple(labels.shape)}, expected ({num_rows},)")
        if not 0 <= rank < len(counts) or counts[rank] != num_rows or sum(counts) < 1:
            raise ValueError(f"counts {list(counts)} does not fit {num_rows} rows on rank {rank}")
        if self.uses_teacher_logits:
            if teacher_logits is None:
                raise ValueError("teacher_logits is needed when kd_weight is above 0")
            if teacher_logits.shape != output.logits.shape:
                raise ValueError(
                    f"teacher_logits has shape {tuple(teacher_logits.shape)} but the student's "
                    f"logits {tuple(output.logits.shape)}: both need the same classes"
                )
        if self.uses_features and output.student_embedding is None:
            raise ValueError(
                "dcd_weight is above 0 but the distiller has no heads: give teacher_dim"
            )
        if self.uses_method and output.method_term is None:
            raise ValueError("method_weight is above 0 but the distiller has no method: give one")


def _zero_of(output: DistillerOutput) -> Tensor:
    """A zero that depends on every output, so that whatever is trained gets a gradient.

    DDP waits for a gradient of each parameter, those of terms that are off or empty too. The sum
    over no element is 0 even when the output is not finite.
    """
    zeros = [part.reshape(-1)[:0].sum() for part in output if part is not None]
    return torch.stack([zero.to(zeros[-1].dtype) for zero in zeros]).sum()

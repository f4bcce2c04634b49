"""What the ranks of a run must have in common: the checkpoint, the gradients, the buffers."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcd_core import Distiller
from orchestrator.checkpoints import Checkpoint, Checkpoints
from orchestrator.errors import RunFailed
from orchestrator.reporter import Ranks

logger = logging.getLogger(__name__)


def newest_checkpoint(checkpoints: Checkpoints, ranks: Ranks) -> Checkpoint | None:
    """The newest checkpoint that rank 0 finds whole: all ranks must go on from the same."""
    done = checkpoints.latest() if ranks.rank == 0 else None
    if ranks.size == 1:
        return done
    epoch = [done.epoch if done is not None else None]
    dist.broadcast_object_list(epoch, src=0)
    if ranks.rank == 0 or epoch[0] is None:
        return done
    found = checkpoints.load(epoch[0])
    if found is None:
        raise RunFailed(
            f"rank {ranks.rank} cannot read the checkpoint of epoch {epoch[0]} that rank 0 reads"
        )
    return found


def train_across_ranks(distiller: Distiller, images: Tensor, *, ranks: Ranks) -> nn.Module:
    """The module to train: in DDP when there is more than one rank.

    DDP waits for the gradient of every parameter unless told that some get none, as those of an
    auxiliary head; a backward pass over two images finds out.
    """
    if ranks.size == 1:
        return distiller
    distiller.eval()  # leaves the running statistics alone
    features = None
    if distiller.teacher_head is not None:
        features = torch.zeros(len(images), distiller.teacher_head.in_features, device=ranks.device)
    output = distiller(images.to(ranks.device).float() / 255, features)
    parts = [output.logits, output.student_embedding, output.teacher_embedding]
    total = torch.stack([part.sum() for part in parts if part is not None]).sum()
    weights = [p for p in distiller.student.parameters() if p.requires_grad]
    unused = any(g is None for g in torch.autograd.grad(total, weights, allow_unused=True))
    if unused:
        logger.info(
            "some of the student's parameters get no gradient: DDP looks for them each step"
        )
    # Banks and queues are large, and equal on all ranks. No training step reads BatchNorm's running
    # statistics, and each epoch ends with those of rank 0 on all. PyTorch 2.14 warns of an argument
    # that is given, and has none yet that leaves buffers alone at the start too.
    without_buffers: dict[str, Any] = {}
    if distiller.method is not None:
        without_buffers["broadcast_buffers"] = False
    return DistributedDataParallel(
        distiller,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        find_unused_parameters=unused,
        **without_buffers,
    )


def share_buffers(distiller: Distiller, ranks: Ranks) -> None:
    """Give all ranks rank 0's buffers, which are those that a checkpoint keeps.

    Local BatchNorm leaves different statistics on each; otherwise they are equal already.
    """
    if ranks.size > 1:
        for buffer in distiller.buffers():
            dist.broadcast(buffer, src=0)

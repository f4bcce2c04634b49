"""The learning rate as a pure function of progress, so that nothing of it needs to be saved."""

from __future__ import annotations

import math

from orchestrator.spec import ScheduleSpec


def lr_factor(spec: ScheduleSpec, *, epoch: float, epochs: int) -> float:
    """Factor on the peak learning rate.

    Args:
        spec: the schedule.
        epoch: epochs done so far, with the share of the current one (2.5 is halfway through the
            third).
        epochs: epochs of the whole run.
    """
    warmup = min(1.0, epoch / spec.warmup_epochs) if spec.warmup_epochs > 0 else 1.0
    if spec.kind == "cosine":
        # Over what is left after the warm-up, so that the peak is reached.
        left = max(epochs - spec.warmup_epochs, 1e-9)
        done = min(1.0, max(0.0, epoch - spec.warmup_epochs) / left)
        return warmup * 0.5 * (1.0 + math.cos(math.pi * done))
    if spec.kind == "step":
        # A milestone between two epochs acts from the next whole epoch, as MultiStepLR would;
        # the 1e-9 is for products such as 0.55 x 100 = 55.00000000000001.
        passed = sum(
            math.floor(epoch) + 1e-9 >= (milestone * epochs if milestone < 1 else milestone)
            for milestone in spec.milestones
        )
        return warmup * spec.gamma**passed
    return warmup

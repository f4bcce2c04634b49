"""The epoch loop. It takes built objects and a reporter, and knows of neither Ray nor MLflow."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from dcd_core import (
    Distiller,
    Meter,
    Objective,
    mix,
    train_step,
)
from orchestrator.across_ranks import newest_checkpoint, share_buffers, train_across_ranks
from orchestrator.batches import Needs, Recipe, Selection, optimizer_steps, prepare
from orchestrator.checkpoints import Best, Checkpoint, Checkpoints
from orchestrator.errors import Diverged
from orchestrator.evaluation import Images, Scored, Scores, as_evaluated, evaluate, score_metrics
from orchestrator.reporter import Ranks, Reporter
from orchestrator.step_graphs import StepGraphs
from orchestrator.streaming.stream import Stream
from orchestrator.teaching import Teaching

logger = logging.getLogger(__name__)

_RNG_STREAM, HEADS_STREAM = 11, 12
"""Streams of `mix` that seed generators; 0 to 10 are left to augmentation."""


def train(
    distiller: Distiller,
    teaching: Teaching | None,
    *,
    objective: Callable[[int], Objective],
    optimizer: torch.optim.Optimizer,
    training: Images | Stream,
    validation: Scored,
    recipe: Recipe,
    checkpoints: Checkpoints,
    reporter: Reporter,
) -> Checkpoint:
    """Train from the newest checkpoint, or from the start, to the last epoch.

    Args:
        teaching: where the teacher's answers come from; None without a teacher.
        objective: the loss of each epoch, counted from 1. A distiller with heads is taught by DCD
            in some epoch, but need not be in all.

    Returns:
        The last checkpoint.

    Raises:
        Diverged: a loss term was not finite; no checkpoint of that epoch is written.
    """
    ranks = reporter.ranks
    # The scale of fp16 gradients is found by the scaler, which skips the steps that overflow.
    scaler = torch.amp.GradScaler(ranks.device.type) if recipe.precision == torch.float16 else None
    done = newest_checkpoint(checkpoints, ranks)
    if done is not None:
        distiller.load_state_dict(done.state["distiller"])
        optimizer.load_state_dict(done.state["optimizer"])
        if scaler is not None:
            scaler.load_state_dict(done.state["scaler"])
        logger.info("resuming after epoch %d of %d", done.epoch, recipe.epochs)
    # What an epoch reported may have been lost with the process that reported it.
    reporter.report(dict(enumerate(done.history, start=1)) if done else {})

    example = as_evaluated(training.examples, recipe.crop_size)
    module = train_across_ranks(distiller, example, ranks=ranks)
    graphs = StepGraphs(optimizer, ranks.device) if recipe.cuda_graphs else None
    for group in optimizer.param_groups:
        group.setdefault("peak_lr", group["lr"])  # a resumed optimizer brings it

    for epoch in range(done.epoch + 1 if done else 1, recipe.epochs + 1):
        _seed_everything(recipe.seed, epoch, ranks.rank)
        started, cpu_started = time.perf_counter(), time.process_time()
        loss = objective(epoch)
        with _unused_rest(distiller, optimizer, loss):
            meter = _train_epoch(
                distiller,
                module,
                teaching,
                epoch=epoch,
                objective=loss,
                optimizer=optimizer,
                scaler=scaler,
                graphs=graphs,
                training=training,
                recipe=recipe,
                ranks=ranks,
            )
        result = meter.result()
        if result.first_bad:
            term, step = min(
                result.first_bad.items(), key=lambda item: (item[1], item[0] == "total")
            )
            raise _diverged(f"{term} was not finite in epoch {epoch}, step {step + 1}", done)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        share_buffers(distiller, ranks)
        scores = evaluate(
            distiller.student,
            validation,
            pixels=recipe.student_pixels,
            ranks=ranks,
            crop_size=recipe.crop_size,
        )
        _check_finite(distiller, scores, scaler, epoch=epoch, done=done)
        metrics = {
            **{"train/loss" if k == "total" else f"train/{k}": v for k, v in result.means.items()},
            **score_metrics("val", scores),
            "optimizer/lr": optimizer.param_groups[0]["lr"],
            "time/epoch_seconds": seconds,
            "time/cpu_seconds": cpu_seconds,
            "time/images_per_second": training.num_images / seconds,
            **training.metrics(),
            **(teaching.metrics() if teaching is not None else {}),
        }
        if distiller.temperature is not None and distiller.bias is not None:
            metrics["dcd/temperature"] = float(distiller.temperature)
            metrics["dcd/bias"] = float(distiller.bias.detach())
        best = done.best if done else Best(epoch, scores.top1)
        done = Checkpoint(
            epoch=epoch,
            best=Best(epoch, scores.top1) if scores.top1 > best.top1 else best,
            history=[*(done.history if done else []), metrics],
            state={
                "distiller": distiller.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
            },
        )
        if ranks.rank == 0:
            checkpoints.save(done)
        reporter.report({epoch: metrics})
    assert done is not None  # epochs >= 1
    return done


def _check_finite(
    distiller: Distiller,
    scores: Scores,
    scaler: torch.amp.GradScaler | None,
    *,
    epoch: int,
    done: Checkpoint | None,
) -> None:
    """Refuse to keep weights that the last step has broken, which no loss has shown yet."""
    for name, value in distiller.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise _diverged(f"{name} was not finite after epoch {epoch}", done)
    if not math.isfinite(scores.loss):
        raise _diverged(f"the validation loss was not finite after epoch {epoch}", done)
    # A scaler that goes on falling below 1 skips every step: the gradients themselves are broken.
    if scaler is not None and scaler.get_scale() < 1.0:
        raise _diverged(f"the fp16 gradients overflow at any scale in epoch {epoch}", done)


def _diverged(what: str, done: Checkpoint | None) -> Diverged:
    kept = f"the checkpoint of epoch {done.epoch} is kept" if done else "no epoch was done"
    return Diverged(
        f"the loss diverged: {what}; {kept}. A lower optimizer.lr or precision fp32 are the usual "
        "remedies"
    )


def _train_epoch(
    distiller: Distiller,
    module: nn.Module,
    teaching: Teaching | None,
    *,
    epoch: int,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    graphs: StepGraphs | None,
    training: Images | Stream,
    recipe: Recipe,
    ranks: Ranks,
) -> Meter:
    distiller.train()
    if teaching is not None:
        teaching.begin(epoch)
    if graphs is not None:
        graphs.begin()
    meter = Meter(device=ranks.device)
    needs = Needs(
        takes_features=distiller.teacher_head is not None,
        features=objective.uses_features,
        logits=objective.uses_teacher_logits,
        method=objective.uses_method,
        positions=objective.uses_method
        and distiller.method is not None
        and distiller.method.keeps_images,
    )

    def act(selections: Sequence[Selection], step: int | Tensor) -> None:
        train_step(
            module,
            [
                prepare(
                    part,
                    teaching,
                    view=recipe.view(epoch),
                    recipe=recipe,
                    needs=needs,
                    epoch=epoch,
                )
                for part in selections
            ],
            objective=objective,
            optimizer=optimizer,
            scaler=scaler,
            precision=recipe.precision,
            meter=meter,
            step=step,
            rank=ranks.rank,
            max_norm=recipe.max_grad_norm,
        )

    num_steps = math.ceil(training.num_images / recipe.batch_size)
    steps = optimizer_steps(
        training, teaching, epoch=epoch, recipe=recipe, ranks=ranks, needs=needs
    )
    for step, selections in enumerate(steps):
        factor = recipe.lr_factor(epoch - 1 + step / num_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        if graphs is None:
            act(selections, step)
        else:
            graphs.run(selections, step, act)
    return meter


@contextmanager
def _unused_rest(
    distiller: Distiller, optimizer: torch.optim.Optimizer, objective: Objective
) -> Iterator[None]:
    """Keep heads, T and b, or what a method learns, as they are while no term trains them.

    Their gradients are zeros then, and an optimizer would go on with momentum and weight decay: in
    the paper's CIFAR recipe, heads that wait for fifty epochs would shrink to 6e-5 of their size.
    It passes parameters over that have no gradient.
    """
    trained = {id(parameter) for parameter in distiller.student.parameters()}
    methods = list(distiller.method.parameters()) if distiller.method is not None else []
    of_method = {id(parameter) for parameter in methods}
    if objective.uses_method:
        trained |= of_method
    if objective.uses_features:
        trained |= {id(p) for p in distiller.parameters() if id(p) not in of_method}
    resting = [p for p in distiller.parameters() if id(p) not in trained]

    def forget_gradients(*_: object) -> None:
        for parameter in resting:
            parameter.grad = None

    hook = optimizer.register_step_pre_hook(forget_gradients)
    try:
        yield
    finally:
        hook.remove()


def _seed_everything(seed: int, epoch: int, rank: int) -> None:
    """Dropout and the like depend on (seed, epoch, rank): a resumed epoch needs no saved state."""
    value = int(mix(seed, epoch, torch.tensor([rank]), _RNG_STREAM)) % 2**32
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002  (a user's own layers may draw from it)
    random.seed(value)

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import Batch, random_batch, random_images, standardised, tiny_distiller
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dcd_core import (
    Distiller,
    Losses,
    Meter,
    MicroBatch,
    Objective,
    build_model,
    crop_flip,
    freeze_teacher,
    sample_order,
    train_step,
)


def _micro_batch(batch: Batch) -> MicroBatch:
    return MicroBatch(batch.images, batch.labels, batch.teacher_logits, batch.teacher_features)


def _sgd(distiller: Distiller, *, momentum: float = 0.9) -> torch.optim.SGD:
    groups = distiller.parameter_groups(lr=0.1, weight_decay=5e-4, scalar_lr_ratio=0.1)
    return torch.optim.SGD(groups, momentum=momentum)


def _losses(total: float, **terms: float) -> Losses:
    return Losses(torch.tensor(total), {k: torch.tensor(v) for k, v in terms.items()})


# Meter


def test_the_meter_weights_means_by_images() -> None:
    meter = Meter()
    meter.add(_losses(3.0, ce=1.0), num_images=64, step=0)
    meter.add(_losses(7.0, ce=2.0), num_images=16, step=1)
    assert meter.result().means == pytest.approx({"total": 3.8, "ce": 1.2})
    assert meter.result().first_bad == {}


def test_the_meter_reports_the_first_bad_step_of_each_term() -> None:
    meter = Meter()
    for step, (total, ce, kd) in enumerate(
        [(1.0, 1.0, 1.0), (math.nan, 1.0, math.inf), (math.nan, -math.inf, math.nan), (1, 1, 1)]
    ):
        meter.add(_losses(total, ce=ce, kd=kd), num_images=8, step=10 + step)
    result = meter.result()
    assert result.first_bad == {"total": 11, "ce": 12, "kd": 11}
    assert math.isnan(result.means["total"])


def test_a_meter_that_saw_nothing_has_no_means() -> None:
    assert Meter().result() == ({}, {})


def test_the_meter_refuses_terms_that_change() -> None:
    meter = Meter()
    meter.add(_losses(1.0, ce=1.0), num_images=1, step=0)
    with pytest.raises(ValueError, match="the terms changed"):
        meter.add(_losses(1.0, kd=1.0), num_images=1, step=1)


# One step


def test_a_step_is_gradient_descent_on_the_objective() -> None:
    distiller, batch = tiny_distiller(), random_batch(6)
    output = distiller(batch.images, batch.teacher_features)
    total = Objective()(output, labels=batch.labels, teacher_logits=batch.teacher_logits).total
    trained = [p for p in distiller.parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, trained)
    expected = []
    for parameter, grad in zip(trained, grads, strict=True):
        scalar = parameter is distiller.log_temperature
        step = grad * 0.01 if scalar else (grad + 5e-4 * parameter) * 0.1
        expected.append(parameter.detach() - step)
    meter = Meter()
    train_step(
        distiller,
        [_micro_batch(batch)],
        objective=Objective(),
        optimizer=_sgd(distiller),
        meter=meter,
        step=0,
    )
    torch.testing.assert_close([p.detach() for p in trained], expected, rtol=1e-12, atol=1e-14)
    assert meter.result().means["total"] == pytest.approx(total.item())


def test_uneven_micro_batches_of_cross_entropy_and_kd_equal_one_batch() -> None:
    objective = Objective(dcd_weight=0)
    weights, means = [], []
    for split in ([12], [5, 4, 3]):
        distiller, meter = tiny_distiller(), Meter()
        optimizer = _sgd(distiller)
        for step in range(3):
            batch = random_batch(12, seed=step)
            parts = zip(*(part.split(split) for part in batch), strict=True)
            train_step(
                distiller,
                [_micro_batch(Batch(*part)) for part in parts],
                objective=objective,
                optimizer=optimizer,
                meter=meter,
                step=step,
            )
        weights.append([p.detach() for p in distiller.parameters()])
        means.append(meter.result().means)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=1e-13)
    assert means[0] == pytest.approx(means[1], rel=1e-12)


def test_accumulating_dcd_is_another_objective() -> None:
    """The images of one micro-batch are compared with each other only."""
    means = []
    for split in ([12], [6, 6]):
        distiller, meter = tiny_distiller(), Meter()
        parts = zip(*(part.split(split) for part in random_batch(12)), strict=True)
        train_step(
            distiller,
            [_micro_batch(Batch(*part)) for part in parts],
            objective=Objective(),
            optimizer=_sgd(distiller),
            meter=meter,
            step=0,
        )
        means.append(meter.result().means)
    assert means[0]["ce"] == pytest.approx(means[1]["ce"])
    assert means[0]["contrast"] > means[1]["contrast"] + 0.5  # ln 12 against ln 6


def test_max_norm_limits_the_gradient_of_the_whole_step() -> None:
    norms = []
    for max_norm in (None, 0.01):
        distiller = tiny_distiller()
        before = [p.detach().clone() for p in distiller.parameters()]
        train_step(
            distiller,
            [_micro_batch(random_batch(6))],
            objective=Objective(),
            optimizer=torch.optim.SGD(distiller.parameters(), lr=1.0),
            meter=Meter(),
            step=0,
            max_norm=max_norm,
        )
        after = [p.detach() for p in distiller.parameters()]
        moved = [(b - a).square().sum() for a, b in zip(after, before, strict=True)]
        norms.append(torch.stack(moved).sum().sqrt().item())
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="eager")])
def test_the_temperature_is_limited_after_the_step(wrap: Any) -> None:
    distiller = tiny_distiller(init_temperature=0.3, min_temperature=0.3)
    assert distiller.log_temperature is not None
    with torch.no_grad():
        distiller.log_temperature.sub_(5)
    train_step(
        wrap(distiller),
        [_micro_batch(random_batch(6))],
        objective=Objective(dcd_weight=0),
        optimizer=_sgd(distiller),
        meter=Meter(),
        step=0,
    )
    assert distiller.temperature is not None
    assert distiller.temperature.item() == pytest.approx(0.3)


def test_float16_with_a_scaler_follows_float32_and_skips_a_step_that_overflows() -> None:
    weights = []
    for precision, scaler in [(None, None), (torch.float16, torch.amp.GradScaler("cpu"))]:
        distiller = tiny_distiller(dtype=torch.float32)
        optimizer = _sgd(distiller)
        for step in range(3):
            train_step(
                distiller,
                [_micro_batch(random_batch(16, seed=step, dtype=torch.float32))],
                objective=Objective(),
                optimizer=optimizer,
                meter=Meter(),
                step=step,
                precision=precision,
                scaler=scaler,
            )
        weights.append([p.detach().clone() for p in distiller.parameters()])
    torch.testing.assert_close(weights[0], weights[1], rtol=0.05, atol=0.02)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    train_step(
        distiller,
        [_micro_batch(random_batch(16, dtype=torch.float32))],
        objective=Objective(),
        optimizer=optimizer,
        meter=Meter(),
        step=3,
        precision=torch.float16,
        scaler=scaler,
        max_norm=1.0,
    )
    after = [p.detach() for p in distiller.parameters()]
    torch.testing.assert_close(after, weights[1], rtol=0, atol=0)
    assert scaler.get_scale() == 2.0**119


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_reaches_the_student_and_float32_does_not(precision: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    distiller = tiny_distiller(dtype=torch.float32)
    distiller.student.register_forward_hook(lambda m, args, output: seen.append(output[0].dtype))
    for value in (precision, torch.float32, None):
        train_step(
            distiller,
            [_micro_batch(random_batch(4, dtype=torch.float32))],
            objective=Objective(),
            optimizer=_sgd(distiller),
            meter=Meter(),
            step=0,
            precision=value,
        )
    assert seen == [precision, torch.float32, torch.float32]


def test_a_frozen_teacher_is_in_eval_and_has_no_gradients() -> None:
    teacher = build_model("resnet8", num_classes=4)
    assert freeze_teacher(teacher) is teacher
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


# No waiting for the device


class _Operations(TorchDispatchMode):
    """The names of all operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique"}
"""Operations whose result the host needs before it can go on."""


def test_the_recorder_sees_a_host_sync() -> None:
    with _Operations() as operations:
        torch.ones(1).item()
    assert operations.names & WAITING


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_a_step_with_augmentation_never_waits_for_the_device(contrast: Any) -> None:
    distiller = tiny_distiller(name="resnet8", learn_bias=True, dtype=torch.float32)
    optimizer, meter, images = _sgd(distiller), Meter(), random_images(16)
    batch = random_batch(16, dtype=torch.float32)
    teacher = freeze_teacher(build_model("resnet8", num_classes=5))
    objective = Objective(contrast=contrast, negatives="other_class")

    def step(number: int) -> None:
        order = sample_order(0, number, torch.arange(16))
        pixels = standardised(crop_flip(images[order], seed=0, epoch=number, indices=order))
        with torch.no_grad():
            logits: Tensor = teacher(pixels)
        train_step(
            distiller,
            [MicroBatch(pixels, batch.labels[order], logits, batch.teacher_features[order])] * 2,
            objective=objective,
            optimizer=optimizer,
            meter=meter,
            step=number,
            max_norm=1.0,
            precision=torch.bfloat16,
        )

    step(0)
    with _Operations() as operations:
        step(1)
    assert "convolution" in operations.names
    assert not operations.names & WAITING


# The whole thing learns


def test_training_lowers_every_term() -> None:
    distiller = tiny_distiller(dtype=torch.float32)
    optimizer, batch = _sgd(distiller), random_batch(16, dtype=torch.float32)
    means = []
    for epoch in range(2):
        meter = Meter()
        for step in range(60 if epoch == 0 else 1):
            train_step(
                distiller,
                [_micro_batch(batch)],
                objective=Objective(),
                optimizer=optimizer,
                meter=meter if step == 0 else Meter(),
                step=step,
            )
        means.append(meter.result().means)
    assert means[1]["total"] < 0.9 * means[0]["total"]
    for term in ("ce", "kd", "contrast"):
        assert means[1][term] < means[0][term]


def test_a_nan_in_the_weights_is_reported_by_term_and_step() -> None:
    distiller = tiny_distiller()
    assert distiller.teacher_head is not None
    optimizer, meter = _sgd(distiller), Meter()
    for step in range(3):
        if step == 2:
            nn.init.constant_(distiller.teacher_head.weight, math.nan)
        train_step(
            distiller,
            [_micro_batch(random_batch(6, seed=step))],
            objective=Objective(),
            optimizer=optimizer,
            meter=meter,
            step=step,
        )
    assert meter.result().first_bad == {"total": 2, "contrast": 2, "consistency": 2}

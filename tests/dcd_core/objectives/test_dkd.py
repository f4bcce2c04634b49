"""DKD against values by hand and against KD."""

from __future__ import annotations

import math

import pytest
import torch
from method_examples import build, learn, says

from dcd_core import kd_divergence

STUDENT = says(1, logits=[[math.log(0.5), math.log(0.3), math.log(0.2)]])
TEACHER = says(1, logits=[[math.log(0.8), math.log(0.1), math.log(0.1)]])
TARGET = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
OTHERS = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)


def test_dkd_weighs_the_true_class_and_the_others_apart() -> None:
    loss = learn(build("dkd", temperature=1.0), STUDENT, TEACHER, labels=[0])
    assert loss.item() == pytest.approx(TARGET + 8 * OTHERS)
    loss = learn(
        build("dkd", temperature=1.0, target_weight=3, others_weight=0.5),
        STUDENT,
        TEACHER,
        labels=[0],
    )
    assert loss.item() == pytest.approx(3 * TARGET + 0.5 * OTHERS)


def test_dkd_is_scaled_by_the_square_of_its_temperature() -> None:
    twice = [said._replace(logits=2 * said.logits) for said in (STUDENT, TEACHER)]
    loss = learn(build("dkd", temperature=2.0), *twice, labels=[0])
    assert loss.item() == pytest.approx(4 * (TARGET + 8 * OTHERS))


@pytest.mark.parametrize(("epoch", "share"), [(1, 0.05), (5, 0.25), (20, 1), (21, 1)])
def test_dkd_warms_up_over_twenty_epochs(epoch: int, share: float) -> None:
    loss = learn(build("dkd", temperature=1.0), STUDENT, TEACHER, labels=[0], epoch=epoch)
    assert loss.item() == pytest.approx(share * (TARGET + 8 * OTHERS))


def test_kd_is_dkd_with_the_others_weighed_by_the_teacher_s_doubt() -> None:
    kd = kd_divergence(STUDENT.logits, TEACHER.logits, temperature=1.0).item()
    assert kd == pytest.approx(TARGET + (1 - 0.8) * OTHERS)


def test_dkd_of_two_classes_has_no_others_to_compare() -> None:
    student, teacher = says(1, logits=[[1.0, 0]]), says(1, logits=[[0.0, 2]])
    method = build("dkd", target_weight=0, others_weight=5)
    assert learn(method, student, teacher, labels=[1]).item() == 0


def test_dkd_of_a_teacher_that_is_sure_is_finite() -> None:
    student = says(1, logits=[[0.0, 1, 2]])
    student.logits.requires_grad_()
    teacher = says(1, logits=[[1e4, 0.0, 0]])
    loss = learn(build("dkd", temperature=1.0), student, teacher, labels=[0])
    loss.backward()
    assert loss.isfinite()
    assert student.logits.grad is not None
    assert torch.isfinite(student.logits.grad).all()

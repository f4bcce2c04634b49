from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from tiny import NUM_CLASSES, Batch, random_batch, tiny_distiller
from torch import Tensor

from dcd_core import Distiller, DistillerOutput, Losses, Objective

ALL_TERMS = Objective(
    ce_weight=0.7, kd_weight=1.3, kd_temperature=3.0, dcd_weight=0.9, consistency_weight=0.4
)


def _losses(objective: Objective, distiller: Distiller, batch: Batch) -> Losses:
    output = distiller(batch.images, batch.teacher_features)
    return objective(output, labels=batch.labels, teacher_logits=batch.teacher_logits)


def _softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def _kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _written_out(objective: Objective, output: DistillerOutput, batch: Batch) -> dict[str, float]:
    """The terms of DCD in plain Python, one image after the other."""
    parts: list[Any] = [part.tolist() for part in output if part is not None]
    logits, student, teacher, log_temperature, bias = parts
    labels, teacher_logits = batch.labels.tolist(), batch.teacher_logits.tolist()
    count = range(len(labels))
    temperature = math.exp(log_temperature)
    pairs = [
        [sum(a * b for a, b in zip(student[i], teacher[j], strict=True)) for j in count]
        for i in count
    ]
    pairs = [[value / temperature + bias for value in row] for row in pairs]
    sums = {"ce": 0.0, "kd": 0.0, "contrast": 0.0, "consistency": 0.0}
    for i in count:
        sums["ce"] -= math.log(_softmax(logits[i])[labels[i]])
        t = objective.kd_temperature
        softened = [_softmax([v / t for v in row]) for row in (teacher_logits[i], logits[i])]
        sums["kd"] += t * t * _kl(*softened)
        negatives = [j for j in count if j != i]
        if objective.negatives == "other_class":
            negatives = [j for j in negatives if labels[j] != labels[i]]
        if objective.contrast == "softmax":
            candidates = [math.exp(pairs[i][j]) for j in [i, *negatives]]
            sums["contrast"] -= math.log(candidates[0] / sum(candidates))
        elif negatives:
            sums["contrast"] += math.log(1 + math.exp(-pairs[i][i]))
            sums["contrast"] += sum(math.log(1 + math.exp(pairs[i][j])) for j in negatives)
        column = [pairs[k][i] for k in count]
        sums["consistency"] += _kl(_softmax(column), _softmax(pairs[i]))
    return {name: value / len(labels) for name, value in sums.items()}


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
@pytest.mark.parametrize("negatives", ["all", "other_class"])
def test_terms_and_total_equal_the_written_out_formulas(contrast: Any, negatives: Any) -> None:
    objective = dataclasses.replace(ALL_TERMS, contrast=contrast, negatives=negatives)
    distiller, batch = tiny_distiller(init_bias=-1.5), random_batch(6)
    losses = _losses(objective, distiller, batch)
    with torch.no_grad():
        output = distiller(batch.images, batch.teacher_features)
    expected = _written_out(objective, output, batch)
    assert {k: v.item() for k, v in losses.terms.items()} == pytest.approx(expected, rel=1e-12)
    total = (
        0.7 * expected["ce"]
        + 1.3 * expected["kd"]
        + 0.9 * (expected["contrast"] + 0.4 * expected["consistency"])
    )
    assert losses.total.item() == pytest.approx(total, rel=1e-12)


def test_two_orthogonal_pairs_give_hand_numbers() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    output = DistillerOutput(
        logits=torch.zeros(2, 4, dtype=torch.float64),
        student_embedding=eye,
        teacher_embedding=eye,
        log_temperature=torch.tensor(1 / math.log(3)).double().log(),  # 1 / T = ln 3
        bias=torch.tensor(0.0).double(),
    )
    losses = Objective(kd_weight=0)(output, labels=torch.tensor([0, 3]))
    assert losses.terms["ce"].item() == pytest.approx(math.log(4))
    assert losses.terms["contrast"].item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert losses.terms["consistency"].item() == pytest.approx(0, abs=1e-12)


def test_the_defaults_are_the_papers() -> None:
    assert Objective() == Objective(
        ce_weight=1,
        kd_weight=1,
        kd_temperature=4,
        dcd_weight=1,
        consistency_weight=0.5,
        contrast="softmax",
        negatives="all",
    )


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
@pytest.mark.parametrize("negatives", ["all", "other_class"])
def test_gradients_of_every_term_are_those_of_finite_differences(
    contrast: Any, negatives: Any
) -> None:
    objective = dataclasses.replace(ALL_TERMS, contrast=contrast, negatives=negatives)
    batch = random_batch(4)
    draw = torch.Generator().manual_seed(5)
    inputs = [
        torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in [(4, NUM_CLASSES), (4, 3), (4, 3), (), ()]
    ]

    def terms(*parts: Tensor) -> tuple[Tensor, ...]:
        losses = objective(
            DistillerOutput(*parts), labels=batch.labels, teacher_logits=batch.teacher_logits
        )
        return (losses.total, *losses.terms.values())

    assert torch.autograd.gradcheck(terms, inputs)


CHANGES = [
    {"ce_weight": 0.5},
    {"kd_weight": 0.5},
    {"kd_temperature": 2.0},
    {"dcd_weight": 0.5},
    {"consistency_weight": 2.0},
    {"contrast": "sigmoid"},
    {"negatives": "other_class"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_setting_changes_the_loss(change: dict[str, Any]) -> None:
    distiller, batch = tiny_distiller(), random_batch(6)
    before = _losses(ALL_TERMS, distiller, batch).total
    after = _losses(dataclasses.replace(ALL_TERMS, **change), distiller, batch).total
    assert abs(before - after).item() > 1e-4


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        ({"kd_weight": 0, "dcd_weight": 0}, ["ce"]),
        ({"dcd_weight": 0}, ["ce", "kd"]),
        ({"ce_weight": 0, "kd_weight": 0}, ["contrast", "consistency"]),
        ({"consistency_weight": 0}, ["ce", "kd", "contrast"]),
    ],
)
def test_only_active_terms_are_returned_and_every_parameter_gets_a_gradient(
    weights: dict[str, Any], names: list[str]
) -> None:
    distiller, batch = tiny_distiller(), random_batch(4)
    losses = _losses(Objective(**weights), distiller, batch)
    losses.total.backward()
    assert list(losses.terms) == names
    missing = [n for n, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


# One image


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_with_one_image_the_dcd_terms_are_zeros_connected_to_heads_and_scalars(
    contrast: Any,
) -> None:
    distiller, batch = tiny_distiller(learn_bias=True), random_batch(1)
    objective = dataclasses.replace(ALL_TERMS, contrast=contrast)
    losses = _losses(objective, distiller, batch)
    losses.total.backward()
    assert losses.terms["contrast"].item() == 0
    assert losses.terms["consistency"].item() == 0
    expected = 0.7 * losses.terms["ce"] + 1.3 * losses.terms["kd"]
    torch.testing.assert_close(losses.total, expected)
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is not None, name
        if not name.startswith("student."):
            assert parameter.grad.abs().max() == 0, name


# The bias


def test_a_bias_enabled_by_hand_under_softmax_has_no_gradient() -> None:
    distiller, batch = tiny_distiller(init_bias=-3.0, learn_bias=True), random_batch(16)
    _losses(Objective(), distiller, batch).total.backward()
    assert distiller.bias is not None
    assert distiller.bias.grad is not None
    assert distiller.bias.grad.abs() < 1e-12


@pytest.mark.parametrize("bias", [1.0, -10.0, 100.0])
def test_the_bias_does_not_change_a_softmax_loss(bias: float) -> None:
    batch = random_batch(16)
    losses = [_losses(Objective(), tiny_distiller(init_bias=b), batch).total for b in (0.0, bias)]
    torch.testing.assert_close(*losses, rtol=1e-13, atol=0)


def test_the_bias_is_alive_under_sigmoid() -> None:
    distiller, batch = tiny_distiller(learn_bias=True), random_batch(16)
    _losses(Objective(contrast="sigmoid"), distiller, batch).total.backward()
    assert distiller.bias is not None
    assert distiller.bias.grad is not None
    assert distiller.bias.grad > 1  # at b = 0 it is far above the log-odds of a pair


# Half precision


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_half_precision_with_the_temperature_at_its_limit_stays_finite(
    precision: torch.dtype, contrast: Any
) -> None:
    distiller = tiny_distiller(
        dtype=torch.float32, learn_bias=True, init_temperature=0.01, min_temperature=0.01
    )
    batch = random_batch(64, dtype=torch.float32)
    batch = batch._replace(teacher_features=batch.teacher_features * 1e4)
    with torch.autocast("cpu", dtype=precision):
        output = distiller(batch.images, batch.teacher_features.to(precision))
        losses = Objective(contrast=contrast, negatives="other_class")(
            output, labels=batch.labels, teacher_logits=(batch.teacher_logits * 100).to(precision)
        )
    losses.total.backward()
    assert output.logits.dtype == precision
    assert {term.dtype for term in [losses.total, *losses.terms.values()]} == {torch.float32}
    assert losses.total.isfinite()
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ce_weight": -1.0}, "ce_weight"),
        ({"kd_weight": math.nan}, "kd_weight"),
        ({"dcd_weight": math.inf}, "dcd_weight"),
        ({"consistency_weight": -0.1}, "consistency_weight"),
        ({"kd_temperature": 0.0}, "kd_temperature"),
        ({"contrast": "hinge"}, "contrast must be 'softmax' or 'sigmoid'"),
        ({"negatives": "some"}, "negatives must be"),
        ({"ce_weight": 0, "kd_weight": 0, "dcd_weight": 0}, "all 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


def test_missing_and_mis_shaped_inputs_are_refused() -> None:
    distiller, batch = tiny_distiller(), random_batch(4)
    output = distiller(batch.images, batch.teacher_features)
    objective = Objective()
    with pytest.raises(ValueError, match="teacher_logits is needed"):
        objective(output, labels=batch.labels)
    with pytest.raises(ValueError, match="same classes"):
        objective(output, labels=batch.labels, teacher_logits=torch.zeros(4, 9))
    with pytest.raises(ValueError, match="labels has shape"):
        objective(output, labels=batch.labels[:3], teacher_logits=batch.teacher_logits)
    with pytest.raises(ValueError, match="counts"):
        objective(
            output, labels=batch.labels, teacher_logits=batch.teacher_logits, counts=[3], rank=0
        )
    without_heads = output._replace(student_embedding=None, teacher_embedding=None)
    with pytest.raises(ValueError, match="no heads"):
        objective(without_heads, labels=batch.labels, teacher_logits=batch.teacher_logits)

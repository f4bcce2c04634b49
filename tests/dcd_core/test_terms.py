from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dcd_core import (
    consistency,
    cross_entropy,
    default_init_bias,
    kd_divergence,
    same_class_mask,
    sigmoid_contrast,
    similarity_logits,
    softmax_contrast,
)

CONTRASTS = [softmax_contrast, sigmoid_contrast]
LN2, LN3 = math.log(2), math.log(3)


def _row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def _softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def _kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _noise(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=draw, dtype=torch.float64)


# Hand numbers


def test_similarity_is_the_inner_product_over_the_temperature_plus_the_bias() -> None:
    anchor, others = _row(1, 0), torch.tensor([[1, 0], [0, 1], [0.6, 0.8]]).double()
    logits = similarity_logits(
        anchor, others, log_temperature=torch.tensor(0.5).double().log(), bias=torch.tensor(0.25)
    )
    torch.testing.assert_close(logits, _row(2.25, 0.25, 1.45))


def test_softmax_contrast_of_odds_three_to_one_is_the_log_of_four_thirds() -> None:
    loss = softmax_contrast(_row(LN3, 0), torch.tensor([0]))
    torch.testing.assert_close(loss, _row(math.log(4 / 3))[0])


def test_sigmoid_contrast_of_undecided_pairs_is_one_bit_each() -> None:
    loss = sigmoid_contrast(_row(0, 0, 0), torch.tensor([1]))
    torch.testing.assert_close(loss, _row(3 * LN2)[0])


def test_sigmoid_contrast_wants_the_positive_high_and_the_negative_low() -> None:
    right = sigmoid_contrast(_row(LN3, -LN3), torch.tensor([0]))
    wrong = sigmoid_contrast(_row(LN3, -LN3), torch.tensor([1]))
    torch.testing.assert_close(right, _row(2 * math.log(4 / 3))[0])
    torch.testing.assert_close(wrong, _row(2 * math.log(4))[0])


def test_consistency_is_the_divergence_of_the_row_from_the_column() -> None:
    loss = consistency(_row(0, 0), _row(LN3, 0))
    torch.testing.assert_close(loss, _row(0.75 * math.log(1.5) + 0.25 * math.log(0.5))[0])


def test_kd_is_the_divergence_at_its_temperature_times_the_temperature_squared() -> None:
    loss = kd_divergence(_row(0, 0), _row(2 * LN3, 0), temperature=2.0)
    torch.testing.assert_close(loss, _row(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))[0])


def test_cross_entropy_of_equal_logits_is_the_log_of_the_number_of_classes() -> None:
    loss = cross_entropy(_row(5, 5, 5, 5), torch.tensor([2]))
    torch.testing.assert_close(loss, _row(math.log(4))[0])


def test_the_initial_bias_is_the_log_odds_of_a_pair() -> None:
    assert default_init_bias(2) == 0.0
    assert default_init_bias(40) == pytest.approx(-3.6635616)


@pytest.mark.parametrize("num_images", [0, 1])
def test_the_initial_bias_needs_a_negative(num_images: int) -> None:
    with pytest.raises(ValueError, match="N >= 2"):
        default_init_bias(num_images)


# Written-out formulas


def test_softmax_contrast_equals_its_formula_without_the_excluded_pairs() -> None:
    logits, positive, excluded = _noise(3, 6), [2, 0, 5], _noise(3, 6, seed=1) > 1
    excluded[range(3), positive] = False
    expected = []
    for row, i, left_out in zip(logits.tolist(), positive, excluded.tolist(), strict=True):
        kept = [math.exp(v) for v, out in zip(row, left_out, strict=True) if not out]
        expected.append(-math.log(math.exp(row[i]) / sum(kept)))
    loss = softmax_contrast(logits, torch.tensor(positive), excluded=excluded)
    assert excluded.any()
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)


def test_sigmoid_contrast_equals_its_formula_without_the_excluded_pairs() -> None:
    logits, positive, excluded = _noise(3, 6), [2, 0, 5], _noise(3, 6, seed=1) > 1
    excluded[range(3), positive] = False
    expected = []
    for row, i, left_out in zip(logits.tolist(), positive, excluded.tolist(), strict=True):
        total = 0.0
        for j, value in enumerate(row):
            if not left_out[j]:
                total -= math.log(1 / (1 + math.exp(-value if j == i else value)))
        expected.append(total)
    loss = sigmoid_contrast(logits, torch.tensor(positive), excluded=excluded)
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)


def test_consistency_equals_its_formula() -> None:
    rows, columns = _noise(3, 6), _noise(3, 6, seed=1)
    expected = [
        _kl(_softmax(column), _softmax(row))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    assert consistency(rows, columns).tolist() == pytest.approx(expected, rel=1e-12)


def test_kd_equals_its_formula() -> None:
    student, teacher = _noise(3, 4), _noise(3, 4, seed=1)
    expected = [
        9 * _kl(_softmax([v / 3 for v in t]), _softmax([v / 3 for v in s]))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert kd_divergence(student, teacher, temperature=3.0).tolist() == pytest.approx(
        expected, rel=1e-12
    )


# Gradients


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_gradient_of_a_contrast_is_that_of_finite_differences(
    contrast: Callable[..., Tensor],
) -> None:
    positive, excluded = torch.tensor([2, 0, 5]), _noise(3, 6, seed=1) > 1
    excluded[range(3), positive] = False
    logits = _noise(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: contrast(x, positive, excluded=excluded), logits)


def test_the_gradients_of_the_similarity_are_those_of_finite_differences() -> None:
    inputs = [_noise(3, 4), _noise(5, 4, seed=1), torch.tensor(-1.0).double(), torch.tensor(0.5)]
    inputs = [value.double().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(
        lambda a, o, t, b: similarity_logits(a, o, log_temperature=t, bias=b), inputs
    )


def test_the_gradients_of_the_consistency_flow_to_both_sides() -> None:
    rows, columns = _noise(3, 6).requires_grad_(), _noise(3, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(consistency, (rows, columns))
    consistency(rows, columns).sum().backward()
    assert rows.grad is not None
    assert columns.grad is not None
    assert rows.grad.abs().min() > 0
    assert columns.grad.abs().min() > 0


def test_the_gradient_of_kd_and_cross_entropy_is_that_of_finite_differences() -> None:
    student, teacher = _noise(3, 4).requires_grad_(), _noise(3, 4, seed=1)
    labels = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda x: kd_divergence(x, teacher, temperature=3.0), student)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), student)


# Masks


def test_the_mask_marks_other_images_of_the_same_class() -> None:
    mask = same_class_mask(
        torch.tensor([7, 2]), torch.tensor([2, 7, 2, 7]), positive=torch.tensor([1, 2])
    )
    assert mask.tolist() == [[False, False, False, True], [True, False, False, False]]


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_anchor_without_negatives_has_no_loss_and_no_gradient(
    contrast: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    logits = _noise(2, 4).to(dtype).requires_grad_()
    excluded = torch.tensor([[False, True, True, True], [False, False, True, False]])
    loss = contrast(logits, torch.tensor([0, 1]), excluded=excluded)
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1] > 0
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0, 0, 0, 0]
    assert logits.grad[1, 2] == 0
    assert logits.grad[1, [0, 1, 3]].abs().min() > 0


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_single_candidate_has_no_loss(contrast: Callable[..., Tensor]) -> None:
    assert contrast(_row(1.7), torch.tensor([0])).item() == 0


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_excluded_pairs_do_not_break_large_float32_logits(contrast: Callable[..., Tensor]) -> None:
    logits = torch.full((1, 3), 1e4).requires_grad_()
    loss = contrast(logits, torch.tensor([0]), excluded=torch.tensor([[False, True, False]]))
    loss.sum().backward()
    assert logits.grad is not None
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_terms_are_computed_in_float32_under_autocast(dtype: torch.dtype) -> None:
    half = _noise(4, 8).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        rows = similarity_logits(
            half, half, log_temperature=torch.tensor(-2.0), bias=torch.tensor(0.0)
        )
        kd = kd_divergence(half, half.flip(1), temperature=4.0)
        ce = cross_entropy(half, torch.zeros(4, dtype=torch.int64))
        contrast = softmax_contrast(rows, torch.arange(4))
        agreement = consistency(rows, rows.T)
    exact = half.float() @ half.float().T * math.exp(2)
    torch.testing.assert_close(rows, exact)
    assert {t.dtype for t in (rows, kd, ce, contrast, agreement)} == {torch.float32}

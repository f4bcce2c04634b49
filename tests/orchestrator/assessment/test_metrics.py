"""The numbers of an evaluation, against calculations by hand."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator.assessment.metrics import (
    ClassRow,
    calibrate,
    class_rows,
    confusion_matrix,
    measure_agreement,
    measure_quality,
)


def test_the_calibration_error_is_that_of_a_calculation_by_hand() -> None:
    found = calibrate(
        torch.tensor([0.95, 0.95, 0.65, 0.65, 0.55]),
        torch.tensor([True, False, True, True, False]),
        num_bins=10,
    )
    # Bins: (0.9, 1] says 0.95 and is right half the time, (0.6, 0.7] says 0.65 and is always
    # right, (0.5, 0.6] says 0.55 and never is.
    by_hand = (2 * (0.95 - 0.5) + 2 * (1 - 0.65) + 1 * 0.55) / 5
    assert found.ece == pytest.approx(100 * by_hand, rel=1e-6)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 2, 0, 0, 2]
    assert found.accuracies.tolist() == [0, 0, 0, 0, 0, 0.0, 1.0, 0, 0, 0.5]
    assert found.confidences[9].item() == pytest.approx(0.95)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_and_certainty_to_the_last() -> None:
    edges = torch.tensor([0.25, 0.5, 0.75, 1.0, 0.5001])
    found = calibrate(edges, torch.ones(5, dtype=torch.bool), num_bins=4)
    assert found.counts.tolist() == [1, 1, 2, 1]


def test_there_are_fifteen_bins_and_certain_right_answers_have_no_error() -> None:
    found = calibrate(torch.ones(3), torch.ones(3, dtype=torch.bool))
    assert len(found.counts) == 15
    assert found.ece == 0.0


def test_likelihood_brier_score_and_confusions_are_those_of_a_calculation_by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    found = measure_quality(probabilities.log(), torch.tensor([0, 2]))
    assert found.top1 == 50.0
    assert found.top5 is None
    assert found.nll == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2, rel=1e-6)
    first = 0.3**2 + 0.2**2 + 0.1**2
    second = 0.1**2 + 0.6**2 + 0.7**2
    assert found.brier == pytest.approx((first + second) / 2, rel=1e-6)
    assert found.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_top5_asks_for_the_class_among_the_five_first() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(3, 1)
    found = measure_quality(logits, torch.tensor([0, 4, 5]))
    assert found.top1 == pytest.approx(100 / 3)
    assert found.top5 == pytest.approx(200 / 3)


def test_logits_of_any_size_have_finite_numbers() -> None:
    found = measure_quality(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([0, 0]))
    assert found.nll == pytest.approx(1e4 / 2)
    assert found.brier == pytest.approx(1.0)
    assert found.calibration.ece == pytest.approx(50.0)


def test_agreement_counts_equal_answers_and_measures_the_distance_from_the_teacher() -> None:
    teacher = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
    student = torch.tensor([[0.3, 0.7], [0.2, 0.8]])
    found = measure_agreement(student.log(), teacher.log())
    assert found.same_top1 == 50.0
    kl = 0.6 * math.log(0.6 / 0.3) + 0.4 * math.log(0.4 / 0.7)
    assert found.kl == pytest.approx(kl / 2, rel=1e-5)
    reverse = 0.3 * math.log(0.3 / 0.6) + 0.7 * math.log(0.7 / 0.4)
    assert abs(reverse - kl) > 1e-3  # so that the direction is tested too


def test_the_rows_of_classes_count_what_is_right_and_name_the_commonest_mistake() -> None:
    confusion = confusion_matrix(
        torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 1, 0]), num_classes=4
    )
    assert confusion.tolist() == [[1, 2, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    rows = class_rows(confusion)
    assert rows == [
        ClassRow(0, 3, 1, 2, 1, 2),
        ClassRow(1, 2, 2, 4, None, 0),
        ClassRow(2, 1, 0, 0, 0, 1),
        ClassRow(3, 0, 0, 0, None, 0),
    ]
    assert [row.top1 for row in rows] == [pytest.approx(100 / 3), 100.0, 0.0, None]
    assert [row.precision for row in rows] == [50.0, 50.0, None, None]

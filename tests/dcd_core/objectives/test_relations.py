"""RKD, SP, PKT and CC against values by hand, and what they do not see."""

from __future__ import annotations

import math

import pytest
import torch
from method_examples import build, learn, says

from dcd_core.objectives import NetworkSizes

PLAIN = NetworkSizes(2)
MAPS = NetworkSizes(2, ((1, 1, 2),))


def test_rkd_compares_distances_relative_to_their_mean() -> None:
    """Distances 1, 3, 2 and 2, 3, 1, both with mean 2: two of three pairs are off by a half."""
    student = says(3, features=[[0.0, 0], [1, 0], [3, 0]])
    teacher = says(3, features=[[0.0, 0], [0, 2], [0, 3]])
    method = build("rkd", student=PLAIN, teacher=PLAIN, distance_weight=3.0, angle_weight=0)
    # Smooth L1 of 0.5 is 0.125; each pair counts in both orders; 9 pairs in all.
    assert learn(method, student, teacher).item() == pytest.approx(3 * 4 * 0.125 / 9)


def test_rkd_compares_the_angles_of_triangles() -> None:
    """A right angle and two of 45 degrees against three of 60, each in both orders of its ends."""
    student = says(3, features=[[0.0, 0], [1, 0], [0, 1]])
    teacher = says(3, features=[[0.0, 0], [1, 0], [0.5, math.sqrt(0.75)]])
    method = build("rkd", student=PLAIN, teacher=PLAIN, distance_weight=0, angle_weight=2.0)
    by_hand = 2 * (0.5**2 / 2 + 2 * (math.sqrt(0.5) - 0.5) ** 2 / 2) / 27
    assert learn(method, student, teacher).item() == pytest.approx(2 * by_hand)


def test_rkd_has_the_paper_s_weights_of_distance_and_angle() -> None:
    student = says(3, features=[[0.0, 0], [1, 0], [0, 1]])
    teacher = says(3, features=[[0.0, 1], [1, 3], [0.5, 2]])

    def loss(**weights: float) -> float:
        return learn(build("rkd", student=PLAIN, teacher=PLAIN, **weights), student, teacher).item()

    distance = loss(distance_weight=1, angle_weight=0)
    angle = loss(distance_weight=0, angle_weight=1)
    assert loss() == pytest.approx(25 * distance + 50 * angle)


def test_rkd_does_not_see_a_shift_a_rotation_or_a_scale() -> None:
    features = torch.tensor([[0.0, 0], [1, 0], [0.3, 2], [4, 1]], dtype=torch.float64)
    turned = 5 * features @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64) + 7
    method = build("rkd", student=PLAIN, teacher=PLAIN)
    loss = learn(method, says(4, features=features.tolist()), says(4, features=turned.tolist()))
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_sp_compares_unit_rows_of_similarities() -> None:
    """Rows (1, 0) and (0, 1) against twice (1, 1) / sqrt 2."""
    student = says(2, hints=[[[[[3.0, 0]]], [[[0, 0.5]]]]])
    teacher = says(2, hints=[[[[[1.0, 0]]], [[[1, 0]]]]])
    method = build("sp", student=MAPS, teacher=MAPS)
    by_hand = 2 * ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 4
    assert learn(method, student, teacher).item() == pytest.approx(by_hand)


def test_pkt_compares_the_probabilities_of_neighbours() -> None:
    """Similarities 1/2, 1 and 1/2 against 1, 1 and 1: one third and two thirds against halves."""
    student = says(3, features=[[2.0, 0], [0, 1], [1, 0]])
    teacher = says(3, features=[[1.0, 0], [2, 0], [3, 0]])
    method = build("pkt", student=PLAIN, teacher=PLAIN)
    one_image = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    assert learn(method, student, teacher).item() == pytest.approx(2 * one_image / 9)


def test_cc_compares_a_taylor_series_of_the_gaussian_kernel() -> None:
    """Cosine 0 against 1 between two images."""
    student = says(2, features=[[2.0, 0], [0, 1]])
    teacher = says(2, features=[[1.0, 0], [5, 0]])
    second_order = math.exp(-0.8) * (0.8 + 0.8**2 / 2)
    loss = learn(build("cc", student=PLAIN, teacher=PLAIN), student, teacher)
    assert loss.item() == pytest.approx(2 * second_order**2 / 4)
    method = build("cc", student=PLAIN, teacher=PLAIN, gamma=0.25, order=1)
    assert learn(method, student, teacher).item() == pytest.approx(
        2 * (math.exp(-0.5) * 0.5) ** 2 / 4
    )


def test_cc_of_a_high_order_is_the_gaussian_kernel() -> None:
    student = says(2, features=[[1.0, 0], [0.6, 0.8]])
    teacher = says(2, features=[[1.0, 0], [0, 1]])
    method = build("cc", student=PLAIN, teacher=PLAIN, gamma=0.7, order=30)
    # |a - b|^2 is 0.8 and 2 for unit vectors.
    by_hand = 2 * (math.exp(-0.7 * 0.8) - math.exp(-0.7 * 2)) ** 2 / 4
    assert learn(method, student, teacher).item() == pytest.approx(by_hand)


def test_cc_of_a_very_high_order_is_still_the_kernel_and_one_that_cannot_reach_it_is_refused() -> (
    None
):
    student = says(2, features=[[1.0, 0], [0.6, 0.8]])
    teacher = says(2, features=[[1.0, 0], [0, 1]])
    method = build("cc", student=PLAIN, teacher=PLAIN, gamma=400.0, order=1500)
    by_hand = 2 * (math.exp(-400 * 0.8) - math.exp(-800)) ** 2 / 4
    assert learn(method, student, teacher).item() == pytest.approx(by_hand, rel=1e-3, abs=1e-30)
    with pytest.raises(ValueError, match="gamma 400 is too large for order 2"):
        build("cc", student=PLAIN, teacher=PLAIN, gamma=400.0)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.data.splits import Cuts, make_cuts
from orchestrator.errors import UserError

NAMES = ("ant", "bee", "cat")


def labels_of(*counts: int) -> np.ndarray:
    """Labels with so many images of each class, interleaved."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).permutation(labels)


def cut(labels: np.ndarray, **options: Any) -> Cuts:
    defaults: dict[str, Any] = {"class_names": NAMES, "split_seed": 0, "val_fraction": 0.1}
    return make_cuts(np.arange(len(labels)), labels, **(defaults | options))


def as_lists(cuts: Cuts) -> list[list[int] | None]:
    return [None if part is None else part.tolist() for part in cuts]


@pytest.mark.parametrize("thinning", [{}, {"limit": 20}, {"labels_per_class": 5}])
def test_every_cut_is_in_ascending_order(thinning: dict[str, Any]) -> None:
    for part in cut(labels_of(50, 30, 20), test_fraction=0.2, **thinning):
        assert part is not None
        assert part.tolist() == sorted(part.tolist())


def test_the_cuts_are_disjoint_and_lose_no_image() -> None:
    cuts = cut(labels_of(50, 30, 20), test_fraction=0.2)

    assert cuts.test is not None
    together = np.concatenate([cuts.train, cuts.val, cuts.test])
    assert sorted(together.tolist()) == list(range(100))


def test_each_class_gives_its_rounded_share_to_test_and_then_to_validation() -> None:
    labels = labels_of(50, 34, 5)

    cuts = cut(labels, test_fraction=0.2, val_fraction=0.1)

    # Test: round(10), round(6.8), round(1). Validation of what is left: round(4), round(2.7), and
    # at least one where round(0.4) would give none.
    assert cuts.test is not None
    assert np.bincount(labels[cuts.test]).tolist() == [10, 7, 1]
    assert np.bincount(labels[cuts.val]).tolist() == [4, 3, 1]
    assert np.bincount(labels[cuts.train]).tolist() == [36, 24, 3]


def test_without_a_test_fraction_there_is_no_test_cut() -> None:
    cuts = cut(labels_of(10, 10))

    assert cuts.test is None
    assert len(cuts.train) == 18
    assert len(cuts.val) == 2


def test_a_class_of_one_image_keeps_it_for_training() -> None:
    labels = labels_of(10, 1)

    cuts = cut(labels, test_fraction=0.2)

    assert 1 in labels[cuts.train]
    assert np.bincount(labels[cuts.train]).tolist() == [7, 1]


@pytest.mark.parametrize("thinning", [{}, {"limit": 7}, {"labels_per_class": 3}])
def test_the_cuts_do_not_depend_on_the_order_of_reading(thinning: dict[str, Any]) -> None:
    labels = labels_of(30, 20, 10)
    order = np.random.default_rng(1).permutation(60)
    options: dict[str, Any] = {
        "class_names": NAMES,
        "split_seed": 3,
        "val_fraction": 0.25,
        "test_fraction": 0.25,
    }

    straight = make_cuts(np.arange(60), labels, **options, **thinning)
    shuffled = make_cuts(order, labels[order], **options, **thinning)

    assert as_lists(straight) == as_lists(shuffled)


@pytest.mark.parametrize("thinning", [{"limit": 5}, {"labels_per_class": 2}])
def test_thinning_out_training_moves_no_image_to_another_cut(thinning: dict[str, Any]) -> None:
    labels = labels_of(30, 20, 10)

    full = cut(labels, test_fraction=0.2)
    thin = cut(labels, test_fraction=0.2, **thinning)

    assert as_lists(full)[1:] == as_lists(thin)[1:]
    assert set(thin.train) < set(full.train)


def test_labels_per_class_gives_exactly_so_many_of_each_class() -> None:
    labels = labels_of(30, 20, 10)

    cuts = cut(labels, labels_per_class=4)

    assert np.bincount(labels[cuts.train]).tolist() == [4, 4, 4]


def test_limit_gives_exactly_so_many_images() -> None:
    cuts = cut(labels_of(30, 20, 10), limit=13)

    assert len(set(cuts.train.tolist())) == 13


@pytest.mark.parametrize("name", ["limit", "labels_per_class"])
def test_a_smaller_training_set_is_part_of_a_larger_one(name: str) -> None:
    labels = labels_of(30, 20, 10)

    few, more = (set(cut(labels, **{name: count}).train.tolist()) for count in (3, 8))

    assert few < more


def test_another_split_seed_draws_other_images_in_every_cut() -> None:
    labels = labels_of(300, 200, 100)
    options = {"test_fraction": 0.2, "limit": 100}

    one, other = (cut(labels, split_seed=seed, **options) for seed in (0, 1))

    for part, other_part in zip(one, other, strict=True):
        assert part is not None
        assert other_part is not None
        assert len(part) == len(other_part)
        assert set(part) != set(other_part)


def test_the_cuts_follow_no_order_of_the_source() -> None:
    """A chance cut of 1,000 out of 10,000 has a mean index within 5 standard errors of the middle,
    and so has the part thinned out of it: 5 · 2,887 / sqrt(n)."""
    labels = np.arange(10_000) % 2

    cuts = cut(labels, limit=1000)

    for part in (cuts.val, cuts.train):
        assert abs(part.mean() - 4999.5) < 5 * 2887 / len(part) ** 0.5


def test_the_validation_share_is_not_the_first_of_the_test_shares_ranking() -> None:
    """The same ranking twice would make validation adjacent to test; independent draws put about
    half of a 50 % validation cut into the test cut of another run that cuts 50 % for test."""
    labels = np.zeros(4000, dtype=np.int64)

    test = cut(labels, test_fraction=0.5, val_fraction=0.1).test
    val = cut(labels, val_fraction=0.5).val

    assert test is not None
    assert 0.45 < np.isin(val, test).mean() < 0.55


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ((10, 10), {"limit": 19}, "data.limit 19 is more than the 18 images"),
        (
            (10, 5),
            {"labels_per_class": 5},
            "data.labels_per_class 5 is more than the 4 training images left of class 'bee'",
        ),
        ((10, 2), {"val_fraction": 0.9}, "class 'bee' has too few images"),
        (
            (10, 2),
            {"val_fraction": 0.1, "test_fraction": 0.9},
            "class 'bee' has too few images",
        ),
        ((1, 1, 1), {}, "data.val_fraction 0.1 leaves the validation split empty"),
        ((1, 1), {"test_fraction": 0.4}, "data.test_fraction 0.4 leaves the test split empty"),
    ],
)
def test_too_few_images_are_refused(
    counts: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        cut(labels_of(*counts), **options)

    assert str(caught.value).startswith(message)


def test_all_images_left_may_be_asked_for() -> None:
    labels = labels_of(10, 10)

    assert len(cut(labels, limit=18).train) == 18
    assert len(cut(labels, labels_per_class=9).train) == 18


def test_a_class_that_the_source_never_had_does_not_count_as_short() -> None:
    labels = labels_of(10, 0, 10)

    cuts = cut(labels, labels_per_class=9)

    assert np.bincount(labels[cuts.train]).tolist() == [9, 0, 9]

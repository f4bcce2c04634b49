"""Tune's schedulers as we use them: decisions, memory, and no end at the last epoch."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from orchestrator.trials.schedulers import build_scheduler, early_stopping, last_exchange, rungs
from search_spaces import Space

STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


def space(scheduler: str = "asha", **section: Any) -> Space:
    values: dict[str, Any] = {
        "title": "t",
        "description": "d",
        "trials": 8,
        "scheduler": scheduler,
        "parameters": {"optimizer.lr": {"uniform": [0.0, 1.0]}},
    }
    return Space.model_validate(values | ({scheduler: section} if section else {}))


def trial(name: str) -> Trial:
    return Trial("t", stub=True, trial_name_creator=lambda trial: name)


class Waiting:
    """Tune's controller, as far as schedulers ask it, while a trial waits for its turn."""

    def get_live_trials(self) -> list[Trial]:
        return [trial("waits")]


def decide(scheduler: Any, of: Trial, epoch: int, score: float) -> str:
    action: str = scheduler.on_trial_result(Waiting(), of, {"epoch": epoch, "score": score})
    return action


def build(of: Space, **kwargs: Any) -> Any:
    defaults: dict[str, Any] = {"epochs": 9, "ended": [], "going_on": {}}
    return build_scheduler(of, **(defaults | kwargs))


def add(scheduler: Any, name: str) -> Trial:
    added = trial(name)
    scheduler.on_trial_add(None, added)
    return added


def test_successive_halving_stops_a_trial_below_the_best_third_of_its_rung() -> None:
    scheduler = build(space(grace=1, reduction=3))
    for name, score in (("a", 90.0), ("b", 80.0)):
        decide(scheduler, add(scheduler, name), 1, score)
    assert decide(scheduler, add(scheduler, "c"), 1, 70.0) == STOP
    assert decide(scheduler, add(scheduler, "d"), 1, 95.0) == CONTINUE


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_no_trial_is_stopped_at_its_last_epoch(kind: str) -> None:
    """What comes after the last epoch, the student that is kept, would be lost."""
    ended = [{epoch: 90.0 for epoch in range(1, 10)}] * 4
    scheduler = build(space(kind, grace=9), ended=ended)
    bad = add(scheduler, "bad")
    for epoch in range(1, 9):
        decide(scheduler, bad, epoch, 10.0)
    assert decide(scheduler, bad, 9, 10.0) == CONTINUE


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_new_session_judges_by_the_trials_of_the_last_one(kind: str) -> None:
    """Five good trials ended before; without them the bad one would be the first, and go on."""
    ended = [{1: 80.0 + n, 2: 85.0 + n, 3: 90.0} for n in range(5)]
    with_memory = build(space(kind, grace=1), ended=ended)
    assert decide(with_memory, add(with_memory, "bad"), 1, 10.0) == STOP
    without = build(space(kind, grace=1))
    assert decide(without, add(without, "bad"), 1, 10.0) == CONTINUE


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_trial_that_goes_on_is_not_judged_again_for_what_it_had_reached(kind: str) -> None:
    ended = [{1: 90.0}] * 5
    scheduler = build(space(kind, grace=1), ended=ended, going_on={"slow": {1: 10.0, 2: 20.0}})
    slow = add(scheduler, "slow")  # its rung at epoch 1 is behind it, however that looks now
    assert decide(scheduler, slow, 3, 95.0) == CONTINUE


def test_the_rungs_of_a_trial_that_goes_on_count_for_the_others() -> None:
    going_on = {name: {1: 90.0} for name in ("a", "b", "c")}
    scheduler = build(space(grace=1, reduction=3), going_on=going_on)
    for name in going_on:
        add(scheduler, name)
    assert decide(scheduler, add(scheduler, "bad"), 1, 10.0) == STOP


def test_median_stopping_waits_for_three_others_and_for_its_grace() -> None:
    scheduler = build(space("median", grace=2), ended=[{1: 90.0, 2: 90.0}] * 2)
    assert decide(scheduler, add(scheduler, "c"), 2, 10.0) == CONTINUE
    scheduler = build(space("median", grace=2), ended=[{1: 90.0, 2: 90.0}] * 3)
    early = add(scheduler, "d")
    assert decide(scheduler, early, 1, 10.0) == CONTINUE
    assert decide(scheduler, early, 2, 10.0) == STOP


def test_a_small_loss_is_good_when_the_goal_says_so() -> None:
    of = space(grace=1, reduction=2).model_copy(update={"metric": "val/loss", "mode": "min"})
    scheduler = build(of)
    decide(scheduler, add(scheduler, "a"), 1, 0.2)
    assert decide(scheduler, add(scheduler, "b"), 1, 0.9) == STOP


@pytest.mark.parametrize(
    ("section", "epochs", "expected"),
    [
        ({"grace": 1, "reduction": 3}, 27, [1, 3, 9]),
        ({"grace": 2, "reduction": 2}, 16, [2, 4, 8]),
        ({"grace": 2, "reduction": 2}, 17, [2, 4, 8, 16]),
        ({}, 30, [4, 12]),
        ({}, 240, [27, 81]),
        ({}, 9, [1, 3]),
        ({}, 1, []),
        ({"grace": 1, "reduction": 2.5}, 3, [1]),  # the next is at 2.5, seen at 3, the last
    ],
)
def test_rungs_are_the_epochs_of_comparison_before_the_last(
    section: dict[str, Any], epochs: int, expected: list[int]
) -> None:
    assert rungs(space(**section), epochs) == expected


def test_the_rungs_shown_are_those_that_tune_compares_at() -> None:
    of = space()
    scheduler = build(of, epochs=30)
    own = sorted(float(milestone) for milestone, _ in scheduler._brackets[0]._rungs)
    assert [epoch for epoch in own if epoch < 30] == rungs(of, 30)


def test_there_are_no_rungs_without_successive_halving() -> None:
    assert rungs(space("none"), 30) == rungs(space("median"), 30) == []


def test_the_grace_never_exceeds_the_budget() -> None:
    assert early_stopping(space(grace=50), epochs=10).grace == 10


@pytest.mark.parametrize(
    ("epochs", "taken_over", "expected"),
    [
        ([], [], 0),
        ([0, 0], [], 0),
        ([3, 2], [], 0),  # the first waits for the second
        ([3, 3], [3], 3),  # they were compared, and nobody has gone on yet
        ([4, 3], [], 3),
        ([6, 5], [3], 3),
        ([7, 6], [3], 6),
    ],
)
def test_a_population_was_last_compared_where_a_member_has_gone_past(
    epochs: list[int], taken_over: list[int], expected: int
) -> None:
    assert last_exchange(epochs, taken_over, 3) == expected

"""Learning rates against numbers worked out by hand."""

from __future__ import annotations

import pytest

from orchestrator.schedule import lr_factor
from orchestrator.spec import ScheduleSpec


@pytest.mark.parametrize("milestones", [(0.625, 0.75, 0.875), (150, 180, 210)])
@pytest.mark.parametrize(
    ("epoch", "factor"),
    [
        (0, 1.0),
        (149.99, 1.0),
        (150, 0.1),
        (179.99, 0.1),
        (180, 0.01),
        (209.99, 0.01),
        (210, 0.001),
        (239.99, 0.001),
    ],
)
def test_the_papers_cifar_schedule_falls_after_150_180_and_210_epochs(
    milestones: tuple[float, ...], epoch: float, factor: float
) -> None:
    spec = ScheduleSpec(milestones=milestones)
    assert lr_factor(spec, epoch=epoch, epochs=240) == pytest.approx(factor)


def test_the_default_schedule_is_the_papers() -> None:
    assert ScheduleSpec() == ScheduleSpec(
        kind="step", milestones=(0.625, 0.75, 0.875), gamma=0.1, warmup_epochs=0.0
    )


def test_the_papers_imagenet_schedule_falls_after_30_60_and_90_epochs() -> None:
    spec = ScheduleSpec(milestones=(30, 60, 90))
    factors = [lr_factor(spec, epoch=e, epochs=120) for e in (29, 30, 59, 60, 89, 90, 119)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("share", "epochs", "first"),
    [
        (0.55, 20, 11),
        (0.55, 100, 55),  # 0.55 * 100 is 55.00000000000001 in floating point
        (0.29, 100, 29),  # and 0.29 * 100 is 28.999999999999996
        (0.5, 3, 2),  # 1.5 epochs: from the next whole epoch
        (0.7, 10, 7),
    ],
)
def test_a_share_of_the_run_falls_at_the_epoch_it_means(
    share: float, epochs: int, first: int
) -> None:
    spec = ScheduleSpec(milestones=(share,))
    assert lr_factor(spec, epoch=first - 0.01, epochs=epochs) == 1.0
    assert lr_factor(spec, epoch=first, epochs=epochs) == pytest.approx(0.1)
    assert lr_factor(spec, epoch=first + 0.01, epochs=epochs) == pytest.approx(0.1)


def test_a_milestone_of_one_is_the_first_epoch_and_not_the_whole_run() -> None:
    spec = ScheduleSpec(milestones=(1,))
    assert lr_factor(spec, epoch=1, epochs=10) == pytest.approx(0.1)


def test_gamma_multiplies_once_for_each_milestone_in_any_order() -> None:
    spec = ScheduleSpec(milestones=(4, 2), gamma=0.5)
    assert [lr_factor(spec, epoch=e, epochs=6) for e in (1, 2, 4)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1.0), (20 / 3, 0.75), (10, 0.5), (40 / 3, 0.25), (20, 0.0)]
)
def test_cosine_falls_along_half_a_wave_to_zero(epoch: float, factor: float) -> None:
    spec = ScheduleSpec(kind="cosine")
    assert lr_factor(spec, epoch=epoch, epochs=20) == pytest.approx(factor, abs=1e-12)


def test_constant_stays_and_knows_no_milestones() -> None:
    spec = ScheduleSpec(kind="constant")
    assert [lr_factor(spec, epoch=e, epochs=10) for e in (0, 6.25, 9.9)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "factors"), [("constant", [0, 0.25, 1, 1]), ("cosine", [0, 0.25, 1.0, 0.853553391])]
)
def test_warmup_rises_in_a_straight_line_on_top_of_the_schedule(
    kind: str, factors: list[float]
) -> None:
    # Cosine over the 4 epochs that are left: (1 + cos(pi / 4)) / 2 one epoch after the warm-up.
    spec = ScheduleSpec.model_validate({"kind": kind, "warmup_epochs": 2})
    found = [lr_factor(spec, epoch=e, epochs=6) for e in (0, 0.5, 2, 3)]
    assert found == pytest.approx(factors, abs=1e-7)


def test_a_milestone_during_warmup_falls_too() -> None:
    spec = ScheduleSpec(milestones=(1,), warmup_epochs=4)
    assert lr_factor(spec, epoch=2, epochs=8) == pytest.approx(0.5 * 0.1)

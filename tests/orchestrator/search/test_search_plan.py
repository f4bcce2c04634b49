"""What a search's trials are: budget, schedule, and which spaces suit an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_experiment

from orchestrator.data import load_dataset
from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment, changed, flatten
from orchestrator.search.finals import final_settings, final_trials, median_final
from orchestrator.search.plan import check_fits, count_trials, read_space, scaled_to, trial_base
from orchestrator.spec import Experiment
from orchestrator.trials.group import Record
from search_spaces import Space


def experiment(**updates: Any) -> Experiment:
    dotted = {key.replace("__", "."): value for key, value in updates.items()}
    return build_experiment(tiny_experiment.tiny_values("teacher.pt", dotted), where="test")


def space(parameters: dict[str, Any] | None = None, **changes: Any) -> Space:
    values: dict[str, Any] = {
        "title": "t",
        "description": "d",
        "trials": 8,
        "parameters": parameters or {"objective.kd_weight": {"loguniform": [0.1, 10.0]}},
    }
    return Space.model_validate(values | changes)


def refusal(of: Space, base: Experiment) -> str:
    with pytest.raises(UserError) as caught:
        check_fits(of, base, load_dataset(base.data), where="own")
    return str(caught.value)


def test_a_smaller_budget_keeps_the_proportions_of_the_schedule() -> None:
    base = experiment(
        train__epochs=240,
        schedule__milestones=[150, 180, 0.875],
        schedule__warmup_epochs=12,
        objective__schedule=[{"epoch": 121, "kd_weight": 0.5}, {"epoch": 240, "kd_weight": 0.1}],
    )
    scaled = changed(base, scaled_to(base, 60))
    assert scaled.train.epochs == 60
    assert scaled.schedule.milestones == (0.625, 0.75, 0.875)
    assert scaled.schedule.warmup_epochs == 3
    assert [change.epoch for change in scaled.objective.schedule] == [31, 60]


def test_milestones_beyond_the_run_stay_beyond_it() -> None:
    base = experiment(train__epochs=100, schedule__milestones=[30, 150, 100])
    scaled = changed(base, scaled_to(base, 50))
    assert scaled.schedule.milestones == (0.3, 75.0, 50.0)


def test_a_single_epoch_has_no_schedule_of_weights() -> None:
    base = experiment(train__epochs=4, objective__schedule=[{"epoch": 3, "kd_weight": 0.5}])
    assert changed(base, scaled_to(base, 1)).objective.schedule == ()


def test_changes_that_fall_together_keep_the_later_ones_weights() -> None:
    base = experiment(
        train__epochs=100,
        objective__schedule=[
            {"epoch": 50, "kd_weight": 0.5, "dcd_weight": 2.0},
            {"epoch": 51, "kd_weight": 0.1},
        ],
    )
    (change,) = changed(base, scaled_to(base, 10)).objective.schedule
    assert (change.kd_weight, change.dcd_weight) == (0.1, 2.0)


def test_early_stopping_uses_a_cosine_where_the_experiment_has_steps() -> None:
    base = experiment(schedule__kind="step")
    stopped = trial_base(base, space(scheduler="asha"), epochs=None)
    assert stopped.experiment.schedule.kind == "cosine"
    assert "cosine" in stopped.notes[0]
    unstopped = trial_base(base, space(scheduler="none"), epochs=None)
    assert (unstopped.experiment, unstopped.notes) == (base, [])


def test_trials_are_counted_by_the_space_the_user_or_the_grid() -> None:
    flat = flatten(experiment().model_dump())
    assert count_trials(space(), flat, None) == 8
    assert count_trials(space(), flat, 3) == 3
    assert count_trials(space(trials=None), flat, 3) == 3
    with pytest.raises(UserError, match="trials: the space does not say how many"):
        count_trials(space(trials=None), flat, None)
    grid = space({"optimizer.lr": {"grid": [0.1, 0.2, 0.3]}}, searcher="grid", trials=None)
    assert count_trials(grid, flat, None) == 3
    with pytest.raises(UserError, match="--trials: a grid search tries every point"):
        count_trials(grid, flat, 5)
    population = space(
        scheduler="pbt", searcher="random", trials=None, pbt={"population": 6, "interval": 1}
    )
    assert count_trials(population, flat, None) == 6
    with pytest.raises(UserError, match=r"pbt\.population"):
        count_trials(population, flat, 5)


@pytest.mark.parametrize(
    ("path", "domain", "expected"),
    [
        ("seed", {"randint": [0, 9]}, "over several seeds with `dcd compare`"),
        ("data.limit", {"choice": [40, 50]}, "all trials share the images"),
        ("data.augment", {"choice": ["none", "imagenet"]}, "between imagenet and others"),
        ("teacher.source", {"choice": ["resnet8", "resnet14"]}, "share the teacher"),
        ("train.epochs", {"randint": [1, 9]}, "give --epochs"),
        ("scaling.workers", {"choice": [1, 2]}, "does not change a student"),
    ],
)
def test_settings_that_trials_share_cannot_be_searched(
    path: str, domain: dict[str, Any], expected: str
) -> None:
    text = refusal(space({path: domain}), experiment())
    assert f"own: parameters.{path} cannot be searched" in text and expected in text


def test_augmentation_can_be_searched() -> None:
    base = experiment()
    of = space({"data.crop_padding": {"choice": [0, 1, 2]}})
    assert check_fits(of, base, load_dataset(base.data), where="own") == []


def test_a_corner_that_breaks_a_rule_between_settings_is_refused_by_name() -> None:
    of = space({"objective.init_temperature": {"loguniform": [0.05, 1.0]}})
    text = refusal(of, experiment())
    assert "with objective.init_temperature = 0.05" in text
    assert "below min_temperature 0.1" in text


def test_a_batch_size_that_a_network_cannot_train_on_is_refused() -> None:
    of = space({"student.source": {"choice": ["resnet8", "no_such_network"]}})
    assert "no_such_network" in refusal(of, experiment())


def test_a_space_with_nothing_to_search_is_refused_and_a_part_of_it_noted() -> None:
    ce = experiment(objective__method="ce")
    of = space(
        {
            "objective.dcd_weight": {
                "loguniform": [0.1, 10.0],
                "when": {"objective.method": ["dcd", "dcd+kd"]},
            }
        }
    )
    text = refusal(of, ce)
    assert "nothing to search" in text and "objective.dcd_weight" in text
    both = Space.model_validate(
        of.model_dump(exclude_none=True)
        | {
            "parameters": of.model_dump(exclude_none=True)["parameters"]
            | {"optimizer.lr": {"loguniform": [0.01, 1.0]}}
        }
    )
    (note,) = check_fits(both, ce, load_dataset(ce.data), where="own")
    assert "objective.dcd_weight" in note


def test_population_based_training_is_for_one_worker_trials() -> None:
    population = space(
        scheduler="pbt", searcher="random", trials=None, pbt={"population": 4, "interval": 1}
    )
    text = refusal(population, experiment(scaling__workers=2))
    assert "scaling.workers: 1" in text


def test_an_unknown_space_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'optim'"):
        read_space("optin")
    with pytest.raises(UserError, match="no such file"):
        read_space(str(tmp_path / "none.yaml"))


def record(name: str, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "name": name,
        "settings": {"objective.kd_weight": 0.5},
        "details": {},
        "experiment": experiment(objective__kd_weight=0.5),
        "state": "finished",
        "error": None,
        "history": {},
        "result": {},
    }
    return Record(**(values | changes))


def test_final_runs_have_fresh_seeds_the_winners_settings_and_the_whole_budget() -> None:
    base = experiment(seed=7, train__epochs=30)
    trials = final_trials(record("0004"), space(), base, group_name="g", num_seeds=2)
    assert [trial.experiment.seed for trial in trials] == [8, 9]
    assert {trial.experiment.objective.kd_weight for trial in trials} == {0.5}
    assert {trial.experiment.train.epochs for trial in trials} == {30}
    assert [trial.name for trial in trials] == ["0004-seed-8", "0004-seed-9"]


def test_the_winner_of_a_population_is_repeated_by_its_schedule() -> None:
    population = space(
        scheduler="pbt", searcher="random", trials=None, pbt={"population": 4, "interval": 1}
    )
    won = experiment(
        train__epochs=10,
        objective__kd_weight=2.0,
        objective__schedule=[{"epoch": 6, "kd_weight": 0.25}],
    )
    settings = final_settings(
        record("0004", experiment=won), population, experiment(train__epochs=30)
    )
    assert settings["objective.kd_weight"] == 2.0  # not the point that the member began with
    assert [dict(change) for change in settings["objective.schedule"]] == [
        {"epoch": 16, "kd_weight": 0.25}
    ]


@pytest.mark.parametrize(
    ("goal", "scores", "expected"),
    [
        ({}, [3.0, 1.0, 2.0], 2.0),
        ({}, [4.0, 1.0], 1.0),
        ({}, [5.0], 5.0),
        ({"metric": "val/loss", "mode": "min"}, [4.0, 1.0], 4.0),
    ],
)
def test_the_median_final_is_chosen_and_of_two_the_worse(
    goal: dict[str, str], scores: list[float], expected: float
) -> None:
    of, other = space(**goal), {"val/top1": 50.0, "val/loss": 2.0}
    metric = of.goals[0].metric
    finals = [record(str(i), result={**other, metric: score}) for i, score in enumerate(scores)]
    chosen = median_final([*finals, record("failed", state="failed")], of)
    assert chosen is not None and chosen.result[metric] == expected


def test_without_a_finished_final_there_is_none() -> None:
    assert median_final([record("failed", state="failed")], space()) is None

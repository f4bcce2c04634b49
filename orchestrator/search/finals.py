"""The winner's full-budget runs: fresh seeds, the experiment's own schedule, one look at the test
split each."""

from __future__ import annotations

from typing import Any

from orchestrator.experiment_file import changed
from orchestrator.search.plan import scaled_to
from orchestrator.search.source import INPUTS, trial_experiment
from orchestrator.spec import Experiment
from orchestrator.trials.feed import Trial
from orchestrator.trials.group import Record
from search_spaces import Space


def final_trials(
    winner: Record, space: Space, experiment: Experiment, *, group_name: str, num_seeds: int
) -> list[Trial]:
    """The runs that show what the winner's settings are worth.

    Their seeds are not the trials' one: the search has picked the winner for how it did there.
    """
    settings = final_settings(winner, space, experiment)
    trials = []
    for number in range(1, num_seeds + 1):
        seed = experiment.seed + number
        name = f"{winner.name}-seed-{seed}"
        full = trial_experiment(experiment, group_name, name, {**settings, "seed": seed})
        shown = {**winner.settings, "seed": seed}
        trials.append(Trial(name, full, shown, {"trial": winner.name, "seed": seed}, INPUTS))
    return trials


def final_settings(winner: Record, space: Space, experiment: Experiment) -> dict[str, Any]:
    """The winner's settings; where they changed along its way, with their schedule."""
    if space.scheduler != "pbt":
        return winner.settings
    epochs = experiment.train.epochs
    own = changed(winner.experiment, {"schedule": experiment.schedule.model_dump()})
    at_length = changed(own, scaled_to(own, epochs)) if own.train.epochs != epochs else own
    objective = at_length.objective.model_dump()
    settings = {path: objective[path.rsplit(".", 1)[-1]] for path in winner.settings}
    return {**settings, "objective.schedule": objective["schedule"]}


def median_final(finals: list[Record]) -> Record | None:
    """The finished run with the median validation score; of two in the middle the lower."""
    ranked = sorted(
        (record for record in finals if record.state == "finished"),
        key=lambda record: record.result["val/top1"],
    )
    return ranked[(len(ranked) - 1) // 2] if ranked else None

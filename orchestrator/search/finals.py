"""The winner's full-budget runs: fresh seeds, the experiment's own schedule, one look at the test
split each."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import FIFOScheduler

from orchestrator.experiment_file import changed
from orchestrator.search.plan import scaled_to
from orchestrator.search.records import score
from orchestrator.search.running import Running
from orchestrator.search.source import INPUTS, trial_experiment
from orchestrator.spec import Experiment
from orchestrator.trials.board import Board
from orchestrator.trials.engine import run_trials
from orchestrator.trials.feed import ListSource, Trial
from orchestrator.trials.group import Record, read_trials
from orchestrator.trials.prepare import one_process, seeing_the_test_split
from orchestrator.trials.tracking import creator
from search_spaces import Space


def run_finals(run: Running, winner: Record) -> list[Record]:
    """Run what is left of the winner's final runs; all of them, as they ended."""
    epochs = run.request.experiment.train.epochs
    planned = final_trials(
        winner,
        run.space,
        one_process(run.request.experiment),
        group_name=run.group.name,
        num_seeds=run.request.final_seeds,
    )
    records = {record.name: record for record in read_trials(run.finals)}
    done = {
        trial.name: ("finished", score(records[trial.name], run.space))
        for trial in planned
        if trial.name in records and records[trial.name].state == "finished"
    }
    left = [trial for trial in planned if trial.name not in done]
    if left:
        run.display.say(
            f"{run.group.name}: trial {winner.name} is best; full runs of it: {len(planned)}"
        )
        seeds = {trial.name: {"seed": trial.details["seed"]} for trial in planned}
        with Board(
            run.display,
            what="final runs",
            total=len(planned),
            epochs=epochs,
            settings_of=lambda name: seeds.get(name, {}),
            higher_is_better=run.space.goals[0].mode == "max",
            ended=done,
        ) as board:
            run_trials(
                seeing_the_test_split(run.prepared.setup)._replace(folder=run.finals),
                ListSource(left),
                scheduler=FIFOScheduler(),
                create=creator(
                    run.finals,
                    run.places,
                    group=run.group.folder,
                    role="final",
                    known=records,
                    tags=lambda trial: {"dcd.trial": trial.details["trial"]},
                ),
                tracking=run.tracking,
                watcher=board,
                ended_before=len(done),
                students=True,
            )
    return [r for r in read_trials(run.finals) if r.details["trial"] == winner.name]


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


def median_final(finals: list[Record], space: Space) -> Record | None:
    """The finished run with the median validation score; of two in the middle the worse."""
    goal = space.goals[0]
    sign = 1.0 if goal.mode == "max" else -1.0
    ranked = sorted(
        (record for record in finals if record.state == "finished"),
        key=lambda record: sign * record.result[goal.metric],
    )
    return ranked[(len(ranked) - 1) // 2] if ranked else None

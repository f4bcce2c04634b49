"""A search's trials: those that go on, and new ones up to the number that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import TrialScheduler

from orchestrator.experiment_file import flatten
from orchestrator.search.records import score, tried
from orchestrator.search.running import Running
from orchestrator.search.source import SpaceSource
from orchestrator.search.study import Study
from orchestrator.trials.board import Board
from orchestrator.trials.engine import Population, run_trials
from orchestrator.trials.feed import Trial
from orchestrator.trials.group import Record, best_so_far
from orchestrator.trials.population import MUTATIONS
from orchestrator.trials.schedulers import build_population, build_scheduler, last_exchange
from orchestrator.trials.tracking import creator
from search_spaces import is_active


def run_space(run: Running, records: Sequence[Record]) -> None:
    """Try points until there are enough.

    Args:
        run: the search.
        records: trials of earlier sessions.
    """
    space = run.space
    study = Study(
        space,
        flatten(run.base.model_dump()),
        num_trials=run.total,
        seed=run.request.seed,
        tried=[tried(record, space) for record in records],
    )
    source = SpaceSource(
        space,
        study,
        base=run.base,
        group_name=run.group.name,
        dataset=run.inputs.dataset,
        trials=run.trials,
        records=records,
        total=run.total,
        say=run.display.say,
    )
    population = None
    if space.pbt is not None:
        members = []
        while (trial := source.next()) is not None:
            members.append(trial)
        population = Population(members, space.pbt.interval)
        scheduler = _population(run, members, records)
    else:
        scheduler = _scheduler(run, records)
    ended = {r.name: (r.state, score(r, space)) for r in records if r.ended}
    with Board(
        run.display,
        what="trials",
        total=run.total,
        epochs=run.base.train.epochs,
        settings_of=lambda name: source.settings.get(name, {}),
        higher_is_better=space.goals[0].mode == "max",
        ended=ended,
        on_change=lambda ended, best: _note_progress(run, ended, best),
    ) as board:
        run_trials(
            run.prepared.setup,
            source,
            scheduler=scheduler,
            create=creator(
                run.trials,
                run.places,
                group=run.group.folder,
                role="trial",
                known={record.name for record in records},
                tags=lambda trial: {"dcd.trial": trial.name},
            ),
            tracking=run.tracking,
            watcher=board,
            ended_before=sum(state != "failed" for state, _ in ended.values()),
            population=population,
        )


def _scheduler(run: Running, records: Sequence[Record]) -> TrialScheduler:
    scores = {r.name: best_so_far(r.history, run.space.goals[0].metric) for r in records}
    return build_scheduler(
        run.space,
        epochs=run.base.train.epochs,
        ended=[scores[r.name] for r in records if r.ended],
        going_on={r.name: scores[r.name] for r in records if not r.ended},
    )


def _population(
    run: Running, members: Sequence[Trial], records: Sequence[Record]
) -> TrialScheduler:
    space, flat = run.space, flatten(run.base.model_dump())
    assert space.pbt is not None
    taken_over = [
        taken["epoch"]
        for record in records
        for taken in (run.trials / record.name).read_json(MUTATIONS) or []
    ]
    return build_population(
        {p: domain for p, domain in space.parameters.items() if is_active(domain, {}, space, flat)},
        {trial.name: _in_force(trial) for trial in members},
        interval=space.pbt.interval,
        epochs=run.base.train.epochs,
        mode=space.goals[0].mode,
        seed=run.request.seed,
        exchanged=last_exchange(
            [record.epochs for record in records], taken_over, space.pbt.interval
        ),
    )


def _in_force(trial: Trial) -> dict[str, Any]:
    """A member's weights now: a resumed one may have taken over others."""
    objective = trial.experiment.objective
    if objective.schedule:
        objective = objective.at(objective.schedule[-1].epoch)
    return {path: getattr(objective, path.rsplit(".", 1)[-1]) for path in trial.settings}


def _note_progress(run: Running, ended: int, best: float | None) -> None:
    metrics = {"search/ended": float(ended)}
    if best is not None:
        metrics["search/best"] = best
    run.tracking.note(metrics, step=ended)

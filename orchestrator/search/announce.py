"""What the terminal and MLflow are told of a search before its first trial."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.experiment_file import yaml_text
from orchestrator.search.request import Request
from orchestrator.search.running import Running
from orchestrator.search.source import INPUTS
from orchestrator.trials.group import Record
from orchestrator.trials.session import say_places
from orchestrator.trials.tracking import request_group


def announce(run: Running, records: Sequence[Record]) -> None:
    """Say where the search is and what runs at once, and write down what MLflow is to know."""
    say, name = run.display.say, run.group.name
    say_places(run.group, run.places, display=run.display)
    if records:
        ended = sum(record.ended for record in records)
        say(f"{name}: trials that have ended: {ended}; going on: {len(records) - ended}")
    workers, resources = run.request.experiment.scaling.workers, run.prepared.setup.resources
    each = f"{resources.cpus} CPU"
    each += f" and {resources.gpus:g} GPU" if resources.gpus else ""
    each += f" for each of {workers} workers" if workers > 1 else ""
    say(f"{name}: {run.prepared.at_once} trials at once, each on {each}")
    _request_tracking(run)


def _request_tracking(run: Running) -> None:
    space, request = run.space, run.request
    goals = ", ".join(f"{goal.metric} ({goal.mode})" for goal in space.goals)
    values = space.model_dump(mode="json", exclude_defaults=True)
    request_group(
        run.group.folder,
        run.base,
        run.inputs,
        run.prepared.teachers[INPUTS],
        run.places,
        role="search",
        params={
            "space": request.space_name,
            "goal": goals,
            "searcher": space.searcher,
            "scheduler": space.scheduler,
            "trials": run.total,
            "epochs": run.base.train.epochs,
            "final_seeds": request.final_seeds,
            "seed": request.seed,
        },
        note=_note(request, goals),
        texts={"space.yaml": yaml_text(values)},
    )


def _note(request: Request, goals: str) -> str:
    """The search's description in the UI."""
    return (
        f"Search of **{request.space.title}** ({request.space_name}) for **{goals}**.\n\n"
        "The runs below this one are its trials; their parameters are what was searched, and the "
        "chart of `val/top1` over them shows which were stopped early (tag `dcd.state`). "
        "`search/best` is the best score after so many ended trials. Runs with the tag "
        "`dcd.role = final` repeat the winner over fresh seeds with the full budget: only they "
        "have seen the test split, once. `report.md` under Artifacts says what was found.\n\n"
        f"{request.space.description.strip()}"
    )

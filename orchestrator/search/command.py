"""From the options of `dcd search` to a request, and from its outcome to text."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dcd_core import default_init_bias
from orchestrator.errors import UserError
from orchestrator.experiment_file import changed, flatten, load_experiment
from orchestrator.places import find_places, storage_folder
from orchestrator.reports.search_text import describe_search
from orchestrator.runs import find_run
from orchestrator.search.driver import Outcome
from orchestrator.search.plan import read_space
from orchestrator.search.request import Request, open_search, resume_search
from orchestrator.spec import Experiment
from orchestrator.summary import tracking_line
from orchestrator.trials.group import Group
from search_spaces import Space, available_spaces, narrow

_FINAL_SEEDS = 3


class Options(NamedTuple):
    """What was typed."""

    space: str | None
    file: Path | None
    overrides: tuple[str, ...]
    trials: int | None
    epochs: int | None
    final_seeds: int | None
    seed: int
    around: str | None
    register: str | None
    name: str | None
    new: bool
    resume: str | None
    storage: str | None


def search_request(options: Options) -> tuple[Request, Group]:
    """What to search, and where.

    Raises:
        UserError: something is missing, contradicts something else, or does not exist.
    """
    if options.resume is not None:
        return _resumed(options, options.resume)
    if options.space is None:
        raise UserError("give a search space and an experiment file, or --resume NAME")
    if str(options.file) in available_spaces():
        raise UserError(
            f"{options.file} is a search space: its name comes first, then the experiment: dcd "
            f"search {options.file} {options.space}"
        )
    space = read_space(options.space)
    if options.file is not None:
        experiment = load_experiment(options.file, options.overrides)
        if options.storage is not None:
            experiment = changed(experiment, {"storage.path": options.storage})
        space, experiment = _around(options, space, experiment)
    else:
        raise UserError(f"give an experiment file too: dcd search {options.space} experiment.yaml")
    request = Request(
        experiment=experiment,
        space=space,
        space_name=Path(options.space).stem,
        trials=options.trials,
        epochs=options.epochs,
        final_seeds=_FINAL_SEEDS if options.final_seeds is None else options.final_seeds,
        seed=options.seed,
        register=options.register,
    )
    return request, open_search(request, name=options.name, new=options.new)


def _resumed(options: Options, name: str) -> tuple[Request, Group]:
    given = {
        "SPACE": options.space,
        "FILE": options.file,
        "--set": options.overrides or None,
        "--epochs": options.epochs,
        "--around": options.around,
        "--name": options.name,
        "--new": options.new or None,
        "--seed": options.seed or None,
    }
    extra = [option for option, value in given.items() if value is not None]
    if extra:
        raise UserError(
            f"--resume takes the search as it is: drop {', '.join(extra)}; --trials, --final-seeds "
            "and --register may change"
        )
    return resume_search(
        name,
        storage_folder(options.storage),
        trials=options.trials,
        final_seeds=options.final_seeds,
        register=options.register,
    )


def _around(options: Options, space: Space, experiment: Experiment) -> tuple[Space, Experiment]:
    """A space around a run, and the experiment with that run's objective."""
    if (space.around is None) != (options.around is None):
        if options.around is None:
            raise UserError(f"{options.space} is searched around a run: give --around RUN")
        raise UserError(f"--around: {options.space} is searched as it is: drop it, or use dcd_fine")
    if options.around is None:
        return space, experiment
    run = find_run(options.around, find_places(experiment).storage)
    if run.objective.schedule:
        raise UserError(
            f"--around {options.around}: its weights follow a schedule, so there is no point to "
            "search around: name a run without objective.schedule"
        )
    objective = run.objective.model_dump(mode="json")
    experiment = changed(experiment, {"objective": objective})
    values = flatten(run.model_dump())
    if run.objective.init_bias == "auto":
        sigmoid = run.objective.contrast == "sigmoid"
        values["objective.init_bias"] = (
            default_init_bias(run.train.micro_batch_size) if sigmoid else 0.0
        )
    try:
        return narrow(space, values, where=options.around), experiment
    except ValueError as error:
        raise UserError(str(error)) from error


def describe_result(outcome: Outcome, experiment: Experiment) -> str:
    """The result as text, and where to find what it left."""
    folder = outcome.group.folder.location
    lines = [describe_search(outcome.record), ""]
    lines.append(f"search   {outcome.group.name} in {folder}")
    lines.append(f"report   {folder}/report.md")
    if outcome.student is not None:
        lines.append(f"student  orchestrator.load_student({outcome.student.location!r})")
    pending = outcome.tracking.pending.values() if outcome.tracking else ()
    return "\n".join([*lines, *tracking_line(outcome.group.name, pending, experiment)])

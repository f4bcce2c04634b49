"""What is asked of a search, and the group on disk that stands for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.experiment_file import identity
from orchestrator.places import find_places
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.trials.group import Group, open_group, resume_group
from search_spaces import Space


class Request(NamedTuple):
    """What is asked of a search."""

    experiment: Experiment
    space: Space
    space_name: str
    trials: int | None = None
    """In all; the space says by default."""
    epochs: int | None = None
    """Of each trial; the experiment's by default."""
    final_seeds: int = 3
    """Full-budget runs of the winner."""
    seed: int = 0
    """Of the points."""
    register: str | None = None
    """Register the winner's student under this name."""


def open_search(request: Request, *, name: str | None = None, new: bool = False) -> Group:
    """The search of a request: the one that exists, or one yet to be created.

    Raises:
        UserError: its name is taken by something else.
    """
    experiment, space = request.experiment, request.space
    name = name or f"{experiment.name}-{request.space_name}"
    if len(name) > 80:
        raise UserError(f"--name {name}: its trials' names need room: 80 characters at most")
    definition = {
        "experiment": identity(experiment),
        "space": space.model_dump(mode="json"),
        "epochs": request.epochs,
        "seed": request.seed,
    }
    asked = {
        "experiment": experiment.model_dump(mode="json"),
        "space_name": request.space_name,
        "trials": request.trials,
        "final_seeds": request.final_seeds,
        "register": request.register,
    }
    return open_group("search", name, definition, asked, find_places(experiment).storage, new=new)


def resume_search(name: str, storage: Folder, **changes: Any) -> tuple[Request, Group]:
    """An existing search, with what is to change of the request that it got last.

    Raises:
        UserError: there is no search of that name.
    """
    group, experiment = resume_group("search", name, storage, changes)
    asked = group.request
    request = Request(
        experiment=experiment,
        space=Space.model_validate(group.definition["space"], strict=False),
        space_name=asked["space_name"],
        trials=asked["trials"],
        epochs=group.definition["epochs"],
        final_seeds=asked["final_seeds"],
        seed=group.definition["seed"],
        register=asked["register"],
    )
    return request, group

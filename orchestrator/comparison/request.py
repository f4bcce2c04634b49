"""What is asked of a comparison, and the group on disk that stands for it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.error_text import nearest
from orchestrator.errors import UserError
from orchestrator.experiment_file import identity, parse_override
from orchestrator.places import find_places
from orchestrator.spec import Experiment, method_names
from orchestrator.storage import Folder
from orchestrator.tracking_files import GROUP_FILE
from orchestrator.trials.group import Group, open_group, resume_group

METRICS = ("test/top1", "test/top5", "val/top1", "val/top5")


class Request(NamedTuple):
    """What is asked of a comparison."""

    experiment: Experiment
    arms: Mapping[str, Mapping[str, Any]]
    """Settings that differ from the experiment, by the arm's name."""
    reference: str
    """The arm that the others are held against."""
    seeds: int
    """How many; the first is the experiment's own."""
    metric: str
    vary_data: bool
    """Whether order and augmentation differ between seeds too."""


def parse_arms(methods: str | None, overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arms from the command line.

    Args:
        methods: ``ce,kd,dcd``: methods of the objective, by comma.
        overrides: ``name=a.b=1 c.d=2``: an arm and the settings in which it differs.

    Raises:
        UserError: an unknown method, a name given twice, or something else than an override.
    """
    arms: dict[str, dict[str, Any]] = {}
    names = method_names()
    for method in filter(None, (part.strip() for part in (methods or "").split(","))):
        if method not in names:
            raise UserError(
                f"--arms: no method {method!r}{nearest(method, names)}: "
                f"{', '.join(names)}, or --arm NAME='a.b=value' for anything else"
            )
        _add(arms, method, {"objective.method": method})
    for text in overrides:
        name, _, rest = text.partition("=")
        name = name.strip()
        parts = shlex.split(rest)
        settings = {}
        if all("=" in part for part in parts):
            settings = dict(parse_override(part, option=f"--arm {name}") for part in parts)
        if not name or not settings:
            raise UserError(
                f"--arm {text}: expected NAME='PATH=VALUE ...', as in "
                "strong='objective.consistency_weight=1'"
            )
        _add(arms, name, settings)
    return arms


def _add(arms: dict[str, dict[str, Any]], name: str, settings: dict[str, Any]) -> None:
    if name in arms:
        raise UserError(f"the arm {name!r} is given twice: give each a name of its own")
    arms[name] = settings


def open_comparison(request: Request, *, name: str | None = None, new: bool = False) -> Group:
    """The comparison of a request: the one that exists, or one yet to be created.

    The number of seeds, the reference and the metric may differ from one session to the next.

    Raises:
        UserError: its name is taken by something else, or the request makes no sense.
    """
    check_request(request)
    experiment = request.experiment
    name = name or f"{experiment.name}-comparison"
    if len(name) > 60:
        raise UserError(f"--name {name}: its trials' names need room: 60 characters at most")
    definition = {
        "experiment": identity(experiment),
        "arms": {arm: dict(settings) for arm, settings in request.arms.items()},
        "vary_data": request.vary_data,
    }
    asked = {
        "experiment": experiment.model_dump(mode="json"),
        "reference": request.reference,
        "seeds": request.seeds,
        "metric": request.metric,
    }
    storage = find_places(experiment).storage
    return open_group("comparison", name, definition, asked, storage, new=new)


def known_seeds(group: Group) -> int:
    """How many seeds an existing comparison was asked for last; 0 when there is none yet."""
    stored = group.folder.read_json(GROUP_FILE)
    return int(stored["request"]["seeds"]) if stored is not None else 0


def resume_comparison(name: str, storage: Folder, **changes: Any) -> tuple[Request, Group]:
    """An existing comparison, with what is to change of the request that it got last.

    Raises:
        UserError: there is no comparison of that name.
    """
    group, experiment = resume_group("comparison", name, storage, changes)
    asked = group.request
    request = Request(
        experiment=experiment,
        arms=group.definition["arms"],
        reference=asked["reference"],
        seeds=asked["seeds"],
        metric=asked["metric"],
        vary_data=group.definition["vary_data"],
    )
    return request, group


def check_request(request: Request) -> None:
    """Refuse a request that makes no sense, whatever the images.

    Raises:
        UserError: too few arms, or an unknown reference, metric or setting of an arm.
    """
    if len(request.arms) < 2:
        raise UserError("a comparison needs at least two arms: give --arms or --arm")
    if request.reference not in request.arms:
        raise UserError(
            f"--reference: no arm {request.reference!r}{nearest(request.reference, request.arms)}"
            f": the arms are {', '.join(request.arms)}"
        )
    if request.metric not in METRICS:
        raise UserError(
            f"--metric: no metric {request.metric!r}{nearest(request.metric, METRICS)}: one of "
            f"{', '.join(METRICS)}"
        )
    for name, settings in request.arms.items():
        for path in settings:
            if path.split(".")[0] in ("name", "seed", "scaling", "tracking", "storage") or (
                path == "data.seed"
            ):
                raise UserError(
                    f"--arm {name}: {path} is the same for all arms: drop it, or use --set"
                )

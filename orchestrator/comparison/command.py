"""From the options of `dcd compare` to a request, and from its outcome to text."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.comparison.driver import Outcome
from orchestrator.comparison.request import (
    Request,
    known_seeds,
    open_comparison,
    parse_arms,
    resume_comparison,
)
from orchestrator.errors import UserError
from orchestrator.places import storage_folder
from orchestrator.reports.comparison import describe_comparison
from orchestrator.spec import Experiment
from orchestrator.summary import tracking_line
from orchestrator.trials.group import Group

AS_IT_IS = (
    "--resume takes the comparison as it is: only --seeds, --reference and --metric may change"
)
_SEEDS, _METRIC = 5, "test/top1"


class Options(NamedTuple):
    """What was typed beside the experiment."""

    arms: str | None
    arm: tuple[str, ...]
    seeds: int | None
    reference: str | None
    metric: str | None
    vary_data: bool
    name: str | None
    new: bool


def new_request(experiment: Experiment, options: Options) -> tuple[Request, Group]:
    """What to compare, and where.

    Raises:
        UserError: an arm, the reference or the metric cannot be, or the name is taken.
    """
    arms = parse_arms(options.arms, options.arm)
    request = Request(
        experiment=experiment,
        arms=arms,
        reference=options.reference or next(iter(arms), ""),
        seeds=options.seeds or _SEEDS,
        metric=options.metric or _METRIC,
        vary_data=options.vary_data,
    )
    group = open_comparison(request, name=options.name, new=options.new)
    if options.seeds is None and known_seeds(group) > request.seeds:
        request = request._replace(seeds=known_seeds(group))  # it was extended
        group = open_comparison(request, name=options.name, new=options.new)
    return request, group


def resumed_request(name: str, storage: str | None, options: Options) -> tuple[Request, Group]:
    """An existing comparison, with what may change of it.

    Raises:
        UserError: there is none of that name, or something is given that makes it another one.
    """
    if options.arms or options.arm or options.name or options.new or options.vary_data:
        raise UserError(AS_IT_IS)
    return resume_comparison(
        name,
        storage_folder(storage),
        seeds=options.seeds,
        reference=options.reference,
        metric=options.metric,
    )


def describe_result(outcome: Outcome, experiment: Experiment) -> str:
    """The result as text, and where to find what it left."""
    folder = outcome.group.folder.location
    lines = [describe_comparison(outcome.comparison), ""]
    lines.append(f"runs     {outcome.group.name} in {folder}")
    lines.append(f"report   {folder}/report.md, {folder}/comparison.png")
    pending = outcome.tracking.pending.values() if outcome.tracking else ()
    return "\n".join([*lines, *tracking_line(outcome.group.name, pending, experiment)])

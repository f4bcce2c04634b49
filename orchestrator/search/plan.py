"""What a search will do: its trials' experiment, and whether the space suits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.data import Dataset, load_dataset
from orchestrator.errors import UserError
from orchestrator.experiment_file import changed, flatten
from orchestrator.ray_session import known_nodes
from orchestrator.resources import describe_need, describe_nodes, per_trial
from orchestrator.spec import Experiment, ScalingSpec
from orchestrator.student_check import check_student
from orchestrator.trials.schedulers import rungs
from search_spaces import (
    Parameter,
    Space,
    corner_points,
    grid_points,
    inert_parameters,
    load_space,
)

_SEARCHABLE_DATA = ("data.augment", "data.crop_padding", "data.flip")
_UNSEARCHABLE = {
    "name": "it only names runs",
    "seed": "compare settings over several seeds with `dcd compare`",
    "data": "all trials share the images: use `dcd compare --arm`",
    "teacher": "all trials share the teacher: use `dcd compare --arm`",
    "teacher_cache": "all trials share the teacher's answers",
    "tracking": "it does not change a student",
    "storage": "it does not change a student",
    "scaling": "it does not change a student",
    "train.epochs": "it is every trial's budget: give --epochs",
    "objective.feature_layer": "all trials share the teacher: use `dcd compare --arm`",
    "objective.hint_layers": "all trials share the teacher: use `dcd compare --arm`",
}
_BUILDS_NETWORK = ("student.", "train.batch_size", "train.accumulate")


class TrialBase(NamedTuple):
    """What trials have in common."""

    experiment: Experiment
    """With the trials' budget and schedule."""
    notes: list[str]


def read_space(name_or_path: str) -> Space:
    """A search space that suits experiments.

    Raises:
        UserError: there is none, or something in it is wrong.
    """
    try:
        return load_space(name_or_path, Experiment)
    except ValueError as error:
        raise UserError(str(error)) from error


def describe_search_plan(
    experiment: Experiment, space: Space, *, trials: int | None, epochs: int | None
) -> str:
    """What `search` would do, as text; starts and writes nothing.

    Raises:
        UserError: as `search` would.
    """
    base = trial_base(experiment, space, epochs=epochs)
    values = flatten(base.experiment.model_dump())
    total = count_trials(space, values, trials)
    if space.around is not None:
        notes = [*base.notes, "it is searched around a run: give --around RUN to `dcd search`"]
    else:
        dataset = load_dataset(experiment.data)
        notes = [*base.notes, *check_fits(space, base.experiment, dataset, where="--space")]
    goals = ", ".join(f"{goal.metric} ({goal.mode})" for goal in space.goals)
    lines = [
        "\n",
        "# search",
        f"space      {space.title}",
        f"goal       {goals}",
        f"trials     {total} by {space.searcher}, early stopping: {space.scheduler}",
        f"budget     {base.experiment.train.epochs} epochs each",
        f"at once    {_at_once(base.experiment.scaling, total)}",
        *(f"searched   {path}: {_domain(p)}" for path, p in space.parameters.items()),
        *(f"note       {note}" for note in notes),
    ]
    stops = rungs(space, base.experiment.train.epochs)
    if stops:
        lines.insert(6, f"compared   after epochs {', '.join(map(str, stops))}")
    return "\n".join(lines)


def _at_once(scaling: ScalingSpec, total: int) -> str:
    scaling = scaling.model_copy(update={"workers": max(1, scaling.workers)})
    nodes = known_nodes()
    found = per_trial(scaling, nodes, total)
    if found is None:
        return f"none: {describe_need(scaling)}, and there is {describe_nodes(nodes)}"
    resources, count = found
    each = f"{resources.cpus} CPU" + (f" and {resources.gpus:g} GPU" if resources.gpus else "")
    workers = f"{scaling.workers} workers of " if scaling.workers > 1 else ""
    return f"{count} trials, each with {workers}{each}, on {describe_nodes(nodes)}"


def _domain(parameter: Parameter) -> str:
    text = f"{parameter.kind} {list(parameter.values)}"
    if parameter.when:
        text += " when " + " and ".join(
            f"{path} is {' or '.join(map(str, values))}" for path, values in parameter.when.items()
        )
    return text


def trial_base(experiment: Experiment, space: Space, *, epochs: int | None) -> TrialBase:
    """The experiment whose settings the trials vary.

    Args:
        experiment: the user's.
        space: what is searched.
        epochs: of each trial, when it is not the experiment's own number.
    """
    notes: list[str] = []
    updates: dict[str, Any] = {}
    own = experiment.train.epochs
    if epochs is not None and epochs != own:
        updates = scaled_to(experiment, epochs)
        notes.append(
            f"trials train for {epochs} epochs and the final runs for the experiment's {own}: the "
            "schedule is scaled to that"
        )
    if space.scheduler in ("asha", "median") and experiment.schedule.kind == "step":
        updates["schedule.kind"] = "cosine"
        notes.append(
            f"trials use a cosine schedule: under the experiment's steps, {space.scheduler} would "
            "compare students before the learning rate has fallen for any of them, which says "
            "little about the end. The winner's final runs use the steps"
        )
    return TrialBase(changed(experiment, updates), notes)


def scaled_to(experiment: Experiment, epochs: int) -> dict[str, Any]:
    """Changes that make an experiment last so many epochs, in the same proportions."""
    ratio = epochs / experiment.train.epochs
    schedule = experiment.schedule
    updates: dict[str, Any] = {"train.epochs": epochs}
    if schedule.warmup_epochs:
        updates["schedule.warmup_epochs"] = schedule.warmup_epochs * ratio
    if any(milestone >= 1 for milestone in schedule.milestones):
        updates["schedule.milestones"] = [
            _rescaled_milestone(milestone, experiment.train.epochs, ratio)
            for milestone in schedule.milestones
        ]
    if experiment.objective.schedule:
        changes = [change.model_dump() for change in experiment.objective.schedule]
        updates["objective.schedule"] = _rescaled(changes, ratio, epochs)
    return updates


def _rescaled_milestone(milestone: float, epochs: int, ratio: float) -> float:
    """At the same share of the run: as a share where it is in the run, else as an epoch again."""
    if milestone < 1:
        return milestone
    return milestone / epochs if milestone < epochs else milestone * ratio


def _rescaled(changes: list[dict[str, Any]], ratio: float, epochs: int) -> list[dict[str, Any]]:
    """Weight changes at the same share of the run; of two that fall together the later wins.

    A single epoch has the weights that the run begins with.
    """
    if epochs == 1:
        return []
    by_epoch: dict[int, dict[str, Any]] = {}
    for change in changes:
        epoch = min(epochs, max(2, 1 + round((change["epoch"] - 1) * ratio)))
        given = {k: v for k, v in change.items() if k != "epoch" and v is not None}
        by_epoch[epoch] = by_epoch.get(epoch, {}) | given
    return [{"epoch": epoch, **given} for epoch, given in sorted(by_epoch.items())]


def count_trials(space: Space, base: Mapping[str, Any], wanted: int | None) -> int:
    """How many trials there will be.

    Raises:
        UserError: a number was asked for where the space decides, or nobody gives one.
    """
    if space.searcher == "grid":
        if wanted is not None:
            raise UserError("--trials: a grid search tries every point of its grid: drop it")
        return len(grid_points(space, base))
    if space.pbt is not None:
        if wanted is not None:
            raise UserError(
                "--trials: population based training trains the space's pbt.population: drop it"
            )
        return space.pbt.population
    number = space.trials if wanted is None else wanted
    if number is None:
        raise UserError(
            "trials: the space does not say how many points are tried: give --trials N, or add "
            "trials to the space"
        )
    return number


def check_fits(space: Space, base: Experiment, dataset: Dataset, *, where: str) -> list[str]:
    """Refuse a space that some trial of could not be run.

    Args:
        space: what is searched.
        base: what the trials vary.
        dataset: its images.
        where: names the space in errors.

    Returns:
        Notes on what the space searches in vain.

    Raises:
        UserError: naming the setting and the reason.
    """
    for path, parameter in space.parameters.items():
        _check_searchable(path, base, where=where)
        crops = {value == "imagenet" for value in (*parameter.values, base.data.augment)}
        if path == "data.augment" and len(crops) > 1:
            raise UserError(
                f"{where}: parameters.data.augment cannot be searched between imagenet and others, "
                "under which students are scored on other parts of the images: use "
                "`dcd compare --arm`"
            )
    values = flatten(base.model_dump())
    notes = inert_parameters(space, values)
    if len(notes) == len(space.parameters):
        raise UserError(f"{where}: nothing to search: {notes[0]}")
    if space.pbt is not None and base.scaling.workers > 1:
        raise UserError(
            f"{where}: population based training runs one-worker trials: set scaling.workers: 1"
        )
    if space.pbt is not None and base.objective.schedule:
        raise UserError(
            f"{where}: population based training makes a schedule of weights, and the experiment "
            "has one: drop objective.schedule"
        )
    if dataset.num_classes <= 5 and any(goal.metric == "val/top5" for goal in space.goals):
        raise UserError(
            f"{where}: goal val/top5: the images have {dataset.num_classes} classes, so every "
            "student is right among its first five: use val/top1"
        )
    for text, settings in corner_points(space, values):
        try:
            experiment = changed(base, settings)
            if space.pbt is not None and base.train.epochs > 1:
                change = {path.rsplit(".", 1)[-1]: value for path, value in settings.items()}
                changed(experiment, {"objective.schedule": [{"epoch": 2, **change}]})
            if any(path.startswith(_BUILDS_NETWORK) for path in settings):
                check_student(experiment, dataset)
        except UserError as error:
            reason = str(error).removeprefix("the changed experiment: ")
            raise UserError(f"{where}: with {text}: {reason}") from error
    return notes


def _check_searchable(path: str, base: Experiment, *, where: str) -> None:
    if path in _SEARCHABLE_DATA:
        return
    for prefix, reason in _UNSEARCHABLE.items():
        if path == prefix or path.startswith(f"{prefix}."):
            raise UserError(f"{where}: parameters.{path} cannot be searched: {reason}")
    own = base.student.checkpoint or base.student.weights
    if path.startswith("student.") and own:
        raise UserError(
            f"{where}: parameters.{path}: the experiment's student starts from {own}, which fits "
            "one architecture: drop student.checkpoint and student.weights"
        )

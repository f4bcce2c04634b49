"""A comparison from the driver's side: arms x seeds as trials, then intervals and a figure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from ray.tune.schedulers import FIFOScheduler

from orchestrator.data import describe_counts
from orchestrator.distillation import check_resources
from orchestrator.error_text import nearest
from orchestrator.errors import RunFailed, UserError
from orchestrator.experiment_file import build_experiment, changed, identity, parse_override
from orchestrator.group_tracking import GroupReport
from orchestrator.inputs import Inputs, read_inputs
from orchestrator.mlflow_client import without_password
from orchestrator.places import find_places
from orchestrator.progress import Display
from orchestrator.reports.comparison import (
    Arm,
    Comparison,
    comparison_markdown,
    describe_comparison,
)
from orchestrator.reports.comparison_figure import draw_comparison
from orchestrator.runs import write_state
from orchestrator.spec import METHOD_WEIGHTS, Experiment
from orchestrator.storage import Folder, check_writable
from orchestrator.summary import browse_line, unsent_line
from orchestrator.trials.board import Board
from orchestrator.trials.engine import run_trials
from orchestrator.trials.feed import ListSource, Trial
from orchestrator.trials.group import (
    Group,
    Record,
    create_trial,
    find_group,
    open_group,
    read_trials,
    write_group,
)
from orchestrator.trials.prepare import Prepared, one_process, prepare
from orchestrator.trials.session import Tracking, group_session
from orchestrator.trials.tracking import request_group, request_trial

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


class Outcome(NamedTuple):
    """What a comparison leaves."""

    group: Group
    comparison: Comparison
    tracking: GroupReport | None


def parse_arms(methods: str | None, overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arms from the command line.

    Args:
        methods: ``ce,kd,dcd``: methods of the objective, by comma.
        overrides: ``name=a.b=1 c.d=2``: an arm and the settings in which it differs.

    Raises:
        UserError: an unknown method, a name given twice, or something else than an override.
    """
    arms: dict[str, dict[str, Any]] = {}
    for method in filter(None, (part.strip() for part in (methods or "").split(","))):
        if method not in METHOD_WEIGHTS:
            raise UserError(
                f"--arms: no method {method!r}{nearest(method, METHOD_WEIGHTS)}: "
                f"{', '.join(METHOD_WEIGHTS)}, or --arm NAME='a.b=value' for anything else"
            )
        _add(arms, method, {"objective.method": method})
    for text in overrides:
        name, _, rest = text.partition("=")
        name = name.strip()
        settings = dict(parse_override(part, option=f"--arm {name}") for part in shlex.split(rest))
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
    _check(request)
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


def resume_comparison(name: str, storage: Folder, **changes: Any) -> tuple[Request, Group]:
    """An existing comparison, with what is to change of the request that it got last.

    Raises:
        UserError: there is no comparison of that name.
    """
    group = find_group("comparison", name, storage)
    asked = group.request | {key: value for key, value in changes.items() if value is not None}
    experiment = build_experiment(asked["experiment"], where=f"{group.folder.location}/group.json")
    updates = {"storage": experiment.storage.model_copy(update={"path": storage.location})}
    request = Request(
        experiment=experiment.model_copy(update=updates),
        arms=group.definition["arms"],
        reference=asked["reference"],
        seeds=asked["seeds"],
        metric=asked["metric"],
        vary_data=group.definition["vary_data"],
    )
    return request, group._replace(request=asked)


def compare(request: Request, group: Group, *, display: Display | None = None) -> Outcome:
    """Run all arms over all seeds, or go on with what is left of that, and hold them together.

    Raises:
        UserError: the input is wrong; nothing was started or written.
        RunFailed: every trial failed.
        Interrupted: a signal came; the comparison can be resumed.
    """
    _check(request)
    display = display or Display()
    experiment = one_process(request.experiment)
    places = find_places(experiment)
    check_writable(places.storage, setting="storage.path")
    check_resources(experiment.scaling)
    with display.step(f"{group.name}: reading images and networks"):
        arms = {
            name: _arm_experiment(experiment, name, settings)
            for name, settings in request.arms.items()
        }
        inputs = {name: _read(name, arm) for name, arm in arms.items()}
    _check_metric(request.metric, inputs)
    for note in dict.fromkeys(note for one in inputs.values() for note in one.notes):
        display.say(f"note: {note}")
    with group_session(group, places, experiment.scaling) as tracking:
        records = read_trials(group.folder / "trials")
        planned = _trials(request, arms, group.name)
        ended = {r.name: r for r in records if r.state == "finished"}
        left = [trial for trial in planned if trial.name not in ended]
        prepared = prepare(
            inputs,
            places,
            group=group.folder,
            num_trials=max(1, len(left)),
            metric="val/top1",
            display=display,
        )
        display.say(f"{group.name}: {group.folder.location}")
        if places.tracking_uri is not None:
            display.say(f"{group.name}: tracked at {without_password(places.tracking_uri)}")
        display.say(
            f"{group.name}: {len(planned)} runs, {len(left)} of them left, "
            f"{prepared.at_once} at once"
        )
        first = next(iter(inputs))
        request_group(
            group.folder,
            experiment,
            inputs[first],
            prepared.teachers[first],
            places,
            role="comparison",
            params={
                "arms": ", ".join(request.arms),
                "reference": request.reference,
                "seeds": request.seeds,
                "metric": request.metric,
                "epochs": experiment.train.epochs,
            },
            note=_note(request),
            texts={"arms.yaml": yaml.safe_dump({k: dict(v) for k, v in request.arms.items()})},
        )
        tracking.start()
        if left:
            _run(left, records, prepared, planned, group, places, tracking, display)
        comparison = _comparison(request, group, inputs[first], planned)
        if all(not arm.scores for arm in comparison.arms):
            raise RunFailed("no run of any arm was trained to the end: see their errors above")
        return _end(comparison, group, tracking, display)


def describe_result(outcome: Outcome, experiment: Experiment) -> str:
    """The result as text, and where to find what it left."""
    folder = outcome.group.folder.location
    lines = [describe_comparison(outcome.comparison), ""]
    lines.append(f"runs     {outcome.group.name} in {folder}")
    lines.append(f"report   {folder}/report.md, {folder}/comparison.png")
    if outcome.tracking is not None and outcome.tracking.pending:
        reason = next(iter(outcome.tracking.pending.values()))
        lines.append(unsent_line(outcome.group.name, reason, experiment))
    elif experiment.tracking.enabled:
        lines.append(browse_line(experiment))
    return "\n".join(lines)


def _check(request: Request) -> None:
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


def _check_metric(metric: str, inputs: Mapping[str, Inputs]) -> None:
    if metric.endswith("top5") and any(one.dataset.num_classes <= 5 for one in inputs.values()):
        raise UserError(
            f"--metric {metric}: there are at most five classes, so every student is right among "
            "its first five: use a top1"
        )
    if metric.startswith("test/"):
        for name, one in inputs.items():
            if one.dataset.test is None:
                raise UserError(
                    f"--metric {metric}: the images of arm {name!r} have no test split: use "
                    "--metric val/top1, or set data.test_fraction"
                )


def _arm_experiment(experiment: Experiment, name: str, settings: Mapping[str, Any]) -> Experiment:
    try:
        return changed(experiment, settings)
    except UserError as error:
        text = str(error).replace("the changed experiment: ", "")
        raise UserError(f"arm {name!r}: {text}") from error


def _read(name: str, experiment: Experiment) -> Inputs:
    try:
        return read_inputs(experiment)
    except UserError as error:
        raise UserError(f"arm {name!r}: {error}") from error


def _trials(request: Request, arms: Mapping[str, Experiment], group_name: str) -> list[Trial]:
    """Seed by seed, so that a comparison that is cut off has whole seeds."""
    trials, slugs = [], _slugs(list(arms))
    for number in range(request.seeds):
        for name, arm in arms.items():
            seed = request.experiment.seed + number
            trial = f"{slugs[name]}-seed-{seed}"
            updates: dict[str, Any] = {"name": f"{group_name}-{trial}", "seed": seed}
            if request.vary_data:
                updates["data.seed"] = request.experiment.data.seed + number
            settings = {"arm": name, **request.arms[name], "seed": seed}
            trials.append(
                Trial(trial, changed(arm, updates), settings, {"arm": name, "seed": seed}, name)
            )
    return trials


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """A name for folders for each arm, as its own as the arm's."""
    slugs: dict[str, str] = {}
    for name in names:
        slug = base = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:20] or "arm"
        number = 1
        while slug in slugs.values():
            number += 1
            slug = f"{base}-{number}"
        slugs[name] = slug
    return slugs


def _run(
    left: list[Trial],
    records: Sequence[Record],
    prepared: Prepared,
    planned: Sequence[Trial],
    group: Group,
    places: Any,
    tracking: Tracking,
    display: Display,
) -> None:
    folder = group.folder / "trials"
    known = {record.name for record in records}
    shown = {t.name: {"arm": t.details["arm"], "seed": t.details["seed"]} for t in planned}

    def create(trial: Trial) -> None:
        if trial.name not in known:
            create_trial(folder / trial.name, trial.experiment, trial.settings, **trial.details)
        request_trial(
            folder / trial.name,
            trial.experiment,
            trial.settings,
            places,
            group=group.folder,
            role="arm",
            tags={"dcd.arm": trial.details["arm"]},
        )

    done = {r.name: (r.state, r.result["val/top1"]) for r in records if r.state == "finished"}
    inputs = {
        key: one._replace(work=one.work._replace(uses_test=True))
        for key, one in prepared.setup.inputs.items()
    }
    with Board(
        display,
        what="runs",
        total=len(planned),
        epochs=max(trial.experiment.train.epochs for trial in planned),
        settings_of=lambda name: shown.get(name, {}),
        higher_is_better=None,
        ended={name: done[name] for name in done if name in shown},
        on_change=lambda ended, best: tracking.note({"comparison/ended": ended}, step=ended),
    ) as board:
        run_trials(
            prepared.setup._replace(inputs=inputs),
            ListSource(left),
            scheduler=FIFOScheduler(),
            create=create,
            tracking=tracking,
            watcher=board,
            ended_before=len(done),
        )


def _comparison(
    request: Request, group: Group, inputs: Inputs, planned: Sequence[Trial]
) -> Comparison:
    records = {record.name: record for record in read_trials(group.folder / "trials")}
    arms = []
    for name, settings in request.arms.items():
        own = [
            records[trial.name]
            for trial in planned
            if trial.details["arm"] == name and trial.name in records
        ]
        finished = [record for record in own if record.state == "finished"]
        arms.append(
            Arm(
                name=name,
                settings=settings,
                scores={r.experiment.seed: r.result[request.metric] for r in finished},
                val_scores={r.experiment.seed: r.result["val/top1"] for r in finished},
                failures={
                    r.experiment.seed: r.error or "failed" for r in own if r.state == "failed"
                },
            )
        )
    experiment = request.experiment
    return Comparison(
        name=group.name,
        metric=request.metric,
        higher_is_better=True,
        unit="%",
        reference=request.reference,
        arms=arms,
        seeds=[experiment.seed + number for number in range(request.seeds)],
        facts={
            "data": f"{experiment.data.source}: {describe_counts(inputs.dataset)}",
            "data fingerprint": inputs.dataset.fingerprint,
            "teacher": experiment.teacher.source if experiment.teacher else "none",
            "student": experiment.student.source,
            "epochs": str(experiment.train.epochs),
            "order and augmentation": "differ between seeds"
            if request.vary_data
            else "the same for all seeds",
        },
    )


def _end(comparison: Comparison, group: Group, tracking: Tracking, display: Display) -> Outcome:
    group.folder.write("comparison.png", draw_comparison(comparison))
    group.folder.write("report.md", comparison_markdown(comparison, figure="comparison.png"))
    group.folder.write("scores.json", json.dumps(_scores(comparison), indent=1))
    metrics = {
        f"mean/{_metric_name(arm.name)}": sum(arm.finished.values()) / len(arm.finished)
        for arm in comparison.arms
        if arm.finished
    }
    tracking.finish(
        "FINISHED",
        metrics=metrics,
        tags={"dcd.seeds": len(comparison.seeds)},
        artifacts=["report.md", "comparison.png", "scores.json"],
    )
    write_group(group)
    write_state(group.folder, "finished")
    report = None
    if tracking.on:
        with display.step(f"{group.name}: sending the rest to MLflow"):
            report = tracking.close()
    return Outcome(group, comparison, report)


def _scores(comparison: Comparison) -> dict[str, Any]:
    return {
        arm.name: {"settings": dict(arm.settings), comparison.metric: dict(arm.scores)}
        for arm in comparison.arms
    }


def _metric_name(arm: str) -> str:
    """MLflow takes letters, digits and a few signs in the name of a metric."""
    kept = (sign if sign.isalnum() or sign in "_-. /" else "_" for sign in arm.replace("+", " "))
    return "".join(kept)


def _note(request: Request) -> str:
    """The comparison's description in the UI."""
    return (
        f"**{', '.join(request.arms)}** over {request.seeds} seeds, by **{request.metric}**, held "
        f"against **{request.reference}**.\n\nThe runs below this one are the arms' runs (tag "
        "`dcd.arm`); the same seed starts from the same student and sees the same images in the "
        "same order in every arm. `report.md` and `comparison.png` under Artifacts say what was "
        "found."
    )

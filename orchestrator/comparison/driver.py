"""A comparison from the driver's side: arms x seeds as trials, then intervals and a figure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray.tune.schedulers import FIFOScheduler

from orchestrator.comparison.report import mean_scores, read_comparison, write_report
from orchestrator.comparison.request import Request, check_request, known_seeds
from orchestrator.distillation import check_resources
from orchestrator.errors import RunFailed, UserError
from orchestrator.experiment_file import changed, identity, yaml_text
from orchestrator.group_tracking import GroupReport
from orchestrator.inputs import Inputs, read_inputs
from orchestrator.places import Places, check_places, find_places, keep_tracking
from orchestrator.progress import Display
from orchestrator.reports.comparison import Comparison
from orchestrator.spec import Experiment
from orchestrator.trials.board import Board
from orchestrator.trials.engine import run_trials
from orchestrator.trials.feed import ListSource, Trial
from orchestrator.trials.group import Group, Record, read_trials
from orchestrator.trials.prepare import Prepared, one_process, prepare, seeing_the_test_split
from orchestrator.trials.session import (
    Tracking,
    existing,
    finish_group,
    group_session,
    say_places,
)
from orchestrator.trials.tracking import creator, request_group


class Outcome(NamedTuple):
    """What a comparison leaves."""

    group: Group
    comparison: Comparison
    tracking: GroupReport | None


def compare(request: Request, group: Group, *, display: Display | None = None) -> Outcome:
    """Run all arms over all seeds, or go on with what is left of that, and hold them together.

    Raises:
        UserError: the input is wrong; nothing was started or written.
        RunFailed: every trial failed.
        Interrupted: a signal came; the comparison can be resumed.
    """
    check_request(request)
    known = known_seeds(group)
    if request.seeds < known:
        raise UserError(
            f"--seeds {request.seeds}: {group.name} has {known} seeds already: give more to extend "
            "it"
        )
    display = display or Display()
    experiment = one_process(request.experiment)
    places = keep_tracking(find_places(experiment), group.folder, experiment)
    check_places(places, experiment)
    check_resources(experiment.scaling)
    with existing(group), display.step(f"{group.name}: reading images and networks"):
        arms = {
            name: _arm_experiment(experiment, name, settings)
            for name, settings in request.arms.items()
        }
        inputs = {name: _read(name, arm) for name, arm in arms.items()}
    _check_metric(request.metric, inputs)
    _check_same_images(request.metric, inputs)
    notes = dict.fromkeys(note for one in inputs.values() for note in one.notes)
    for note in [*notes, *_equal_arms(arms)]:
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
        say_places(group, places, display=display)
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
            texts={"arms.yaml": yaml_text({k: dict(v) for k, v in request.arms.items()})},
        )
        tracking.start()
        if left:
            _run(left, records, prepared, planned, group, places, tracking, display)
        comparison = read_comparison(request, group, inputs[first], planned)
        if all(not arm.scores for arm in comparison.arms):
            raise RunFailed("no run of any arm was trained to the end: see their errors above")
        report = finish_group(
            group,
            tracking,
            metrics=mean_scores(comparison),
            tags={"dcd.seeds": len(comparison.seeds)},
            artifacts=write_report(group.folder, comparison),
            display=display,
        )
        return Outcome(group, comparison, report)


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


def _equal_arms(arms: Mapping[str, Experiment]) -> list[str]:
    """A sentence for each arm that cannot differ from one before it."""
    first: dict[str, str] = {}
    sentences = []
    for name, arm in arms.items():
        values = identity(arm)
        if arm.objective.contrast == "softmax":
            values["objective.init_bias"] = None  # which a softmax ignores
        key = json.dumps(values, sort_keys=True)
        if key in first:
            sentences.append(f"arms {first[key]!r} and {name!r} are the same: they cannot differ")
        first.setdefault(key, name)
    return sentences


def _check_same_images(metric: str, inputs: Mapping[str, Inputs]) -> None:
    split = metric.split("/")[0]
    (first, reference), *others = inputs.items()
    for name, one in others:
        if _scored_on(one, split) != _scored_on(reference, split):
            raise UserError(
                f"arm {name!r} is scored on other {split} images than arm {first!r}, so that their "
                "difference would be the images' as well: let all arms have the same data source, "
                "fractions and data.split_seed"
            )


def _scored_on(inputs: Inputs, split: str) -> tuple[str, str | None, bytes]:
    """Which images an arm is scored on, however they are prepared."""
    images = inputs.dataset.val if split == "val" else inputs.dataset.test
    assert images is not None  # `_check_metric` has looked
    data = inputs.experiment.data
    path = data.path if split == "val" else data.test_path or data.path
    return f"{data.source} {sorted(data.args.items())}", path, images.indices.tobytes()


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
    places: Places,
    tracking: Tracking,
    display: Display,
) -> None:
    shown = {t.name: {"arm": t.details["arm"], "seed": t.details["seed"]} for t in planned}

    done = {r.name: (r.state, r.result["val/top1"]) for r in records if r.state == "finished"}
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
            seeing_the_test_split(prepared.setup),
            ListSource(left),
            scheduler=FIFOScheduler(),
            create=creator(
                group.folder / "trials",
                places,
                group=group.folder,
                role="arm",
                known={record.name for record in records},
                tags=lambda trial: {"dcd.arm": trial.details["arm"]},
            ),
            tracking=tracking,
            watcher=board,
            ended_before=len(done),
        )


def _note(request: Request) -> str:
    """The comparison's description in the UI."""
    return (
        f"**{', '.join(request.arms)}** over {request.seeds} seeds, by **{request.metric}**, held "
        f"against **{request.reference}**.\n\nThe runs below this one are the arms' runs (tag "
        "`dcd.arm`); the same seed starts from the same student and sees the same images in the "
        "same order in every arm. `report.md` and `comparison.png` under Artifacts say what was "
        "found."
    )

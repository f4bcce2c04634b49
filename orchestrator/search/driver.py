"""A search from the driver's side: check, search, run the winner over seeds, report."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.distillation import check_resources
from orchestrator.errors import RunFailed, UserError
from orchestrator.experiment_file import flatten
from orchestrator.group_tracking import GroupReport
from orchestrator.inputs import read_inputs
from orchestrator.journal import Journal
from orchestrator.places import check_places, find_places, keep_tracking
from orchestrator.progress import Display
from orchestrator.reports.search import SearchRecord
from orchestrator.search import latency
from orchestrator.search.announce import announce
from orchestrator.search.finals import median_final, run_finals
from orchestrator.search.latency import measure_latencies
from orchestrator.search.plan import check_fits, count_trials, trial_base
from orchestrator.search.records import LATENCY, PARAMETERS, score, winner
from orchestrator.search.report import search_record, write_report
from orchestrator.search.request import Request
from orchestrator.search.running import Running
from orchestrator.search.source import INPUTS
from orchestrator.search.trials import run_space
from orchestrator.spec import MODEL_NAME_PATTERN
from orchestrator.storage import Folder
from orchestrator.tracking import register_later
from orchestrator.trials.book import HALT_AFTER
from orchestrator.trials.group import Group, Record, read_trials
from orchestrator.trials.population import complete
from orchestrator.trials.prepare import one_process, prepare
from orchestrator.trials.session import existing, finish_group, group_session
from search_spaces import Space


class Outcome(NamedTuple):
    """What a search leaves."""

    group: Group
    record: SearchRecord
    student: Folder | None
    """The final run with the median validation score."""
    tracking: GroupReport | None


def search(request: Request, group: Group, *, display: Display | None = None) -> Outcome:
    """Search, or go on with a search that was cut off or shall have more trials.

    Raises:
        UserError: the input is wrong; nothing was started or written.
        RunFailed: every trial failed.
        Interrupted: a signal came; the search can be resumed.
    """
    display = display or Display()
    experiment = one_process(request.experiment)
    places = keep_tracking(find_places(experiment), group.folder, experiment)
    check_places(places, experiment)
    space = request.space
    base = trial_base(experiment, space, epochs=request.epochs)
    total = count_trials(space, flatten(base.experiment.model_dump()), request.trials)
    _check_not_fewer(request, group)
    if request.register is not None and not re.match(MODEL_NAME_PATTERN, request.register):
        raise UserError(
            f"--register {request.register!r}: MLflow takes no name that is empty or has a slash "
            "or a colon"
        )
    if request.register and not request.final_seeds:
        raise UserError("--register registers a final run: give --final-seeds 1 or more")
    if request.register and places.tracking_uri is None:
        raise UserError("--register needs MLflow: set tracking.enabled: true")
    check_resources(experiment.scaling)
    with existing(group), display.step(f"{group.name}: reading images and networks"):
        inputs = read_inputs(base.experiment)
    notes = [
        *base.notes,
        *check_fits(space, base.experiment, inputs.dataset, where=request.space_name),
    ]
    for note in [*inputs.notes, *notes]:
        display.say(f"note: {note}")
    with group_session(group, places, experiment.scaling) as tracking:
        records = _again_if_all_failed(_read(group.folder / "trials", space))
        left = total - sum(record.ended for record in records)
        prepared = prepare(
            {INPUTS: inputs},
            places,
            group=group.folder,
            num_trials=max(left, request.final_seeds, 1),
            metric=space.goals[0].metric,
            display=display,
        )
        run = Running(
            request=request,
            group=group,
            base=base.experiment,
            total=total,
            notes=notes,
            inputs=inputs,
            prepared=prepared,
            places=places,
            tracking=tracking,
            display=display,
        )
        announce(run, records)
        tracking.start()
        if left > 0:
            run_space(run, records)
            records = read_trials(run.trials)
        best = winner(records, space)
        if best is None:
            raise RunFailed(_no_winner(records))
        return _end(run, records, best, run_finals(run, best))


def _end(run: Running, records: Sequence[Record], best: Record, finals: list[Record]) -> Outcome:
    if any(goal.metric == PARAMETERS for goal in run.space.goals):
        _measure_sizes(run, records)
    record = search_record(
        run.group,
        run.space,
        space_name=run.request.space_name,
        experiment=run.base,
        inputs=run.inputs,
        records=records,
        winner=best,
        finals=finals,
        notes=run.notes,
    )
    artifacts = write_report(run.group.folder, record, records)
    chosen = median_final(finals, run.space)
    if finals and chosen is None:
        raise RunFailed(
            f"trial {best.name} is best, but none of its {len(finals)} final runs was trained to "
            f"the end; one failed so: {finals[-1].error}. To resume tries them again"
        )
    tags = {"dcd.winner": best.name, "dcd.winner.settings": json.dumps(best.settings)}
    if chosen is not None:
        tags["dcd.winner.student"] = chosen.name
        if run.request.register:
            register_later(run.finals / chosen.name, run.request.register)
            run.tracking.changed(run.finals / chosen.name)
    report = finish_group(
        run.group,
        run.tracking,
        metrics=_final_figures(best, finals, run.space),
        tags=tags,
        artifacts=artifacts,
        display=run.display,
    )
    student = run.finals / chosen.name if chosen else None
    return Outcome(run.group, record, student, report)


def _check_not_fewer(request: Request, group: Group) -> None:
    known = len((group.folder / "trials").names())
    if group.exists and request.trials is not None and request.trials < known:
        raise UserError(
            f"--trials {request.trials}: {group.name} has {known} trials already: give more to "
            "extend it"
        )


def _read(trials: Folder, space: Space) -> list[Record]:
    if space.pbt is not None:
        for name in trials.names():
            complete(trials / name)
    return read_trials(trials)


def _measure_sizes(run: Running, records: Sequence[Record]) -> None:
    """Latency and parameters of the finished trials' students, in MLflow too."""
    done = [record for record in records if record.state == "finished"]
    measure_latencies([run.trials / record.name for record in done], display=run.display)
    for record in done:
        folder = run.trials / record.name
        sizes = {
            PARAMETERS: float(record.details[PARAMETERS]),
            LATENCY: folder.read_json(latency.FILE)["latency_ms"],
        }
        journal = Journal(folder)
        journal.append_history([(record.epochs, sizes)])
        run.tracking.changed(folder)


def _no_winner(records: Sequence[Record]) -> str:
    failed = [record.error for record in records if record.state == "failed"]
    return f"none of {len(records)} trials was trained to the end" + (
        f"; {len(failed)} failed, the last so: {failed[-1]}" if failed else ""
    )


def _again_if_all_failed(records: list[Record]) -> list[Record]:
    """Trials that failed are not tried again, unless that is how the search ended."""
    failed = sum(record.state == "failed" for record in records)
    good = any(record.state in ("finished", "stopped") for record in records)
    if good or failed < min(len(records), HALT_AFTER):
        return records
    return [record._replace(state="interrupted", error=None) for record in records]


def _final_figures(best: Record, finals: list[Record], space: Space) -> dict[str, float]:
    figures: dict[str, float] = {}
    value = score(best, space)
    if value is not None:
        figures["search/winner"] = value
    for split in ("val", "test"):
        values = [
            record.result[f"{split}/top1"]
            for record in finals
            if record.state == "finished" and f"{split}/top1" in record.result
        ]
        if values:
            figures[f"final/{split}_top1"] = sum(values) / len(values)
    return figures

"""A search's report: read from its trials' folders, written beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data import describe_counts
from orchestrator.inputs import Inputs
from orchestrator.reports.figures import search_figures
from orchestrator.reports.search import LATENCY, FinalRow, SearchRecord, TrialRow
from orchestrator.reports.search_text import search_markdown
from orchestrator.search import latency
from orchestrator.search.records import goal_values, score
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.trials.group import Group, Record, best_so_far
from orchestrator.trials.population import MUTATIONS, weights_in_force
from orchestrator.trials.schedulers import rungs
from search_spaces import Space

TIMELINE = "timeline.parquet"
"""Under population based training: every weight of every member in every epoch."""


def search_record(
    group: Group,
    space: Space,
    *,
    space_name: str,
    experiment: Experiment,
    inputs: Inputs,
    records: Sequence[Record],
    winner: Record,
    finals: Sequence[Record],
    notes: Sequence[str],
) -> SearchRecord:
    """All that is told of a search.

    Args:
        group: the search.
        space: what was searched.
        space_name: by which the user knows it.
        experiment: what the trials vary.
        inputs: its images and networks.
        records: its trials.
        winner: the best of them.
        finals: the winner's final runs.
        notes: sentences that the reader should not miss.
    """
    goal = space.goals[0]
    epochs = experiment.train.epochs
    return SearchRecord(
        name=group.name,
        space=space_name,
        title=space.title,
        metric=goal.metric,
        higher_is_better=goal.mode == "max",
        goals=[(g.metric, g.mode) for g in space.goals],
        scheduler=space.scheduler,
        searcher=space.searcher,
        domains={path: parameter.kind for path, parameter in space.parameters.items()},
        epochs=epochs,
        finals_differ=_differ(experiment, finals),
        rungs=rungs(space, epochs),
        trials=[_row(record, space, group.folder / "trials" / record.name) for record in records],
        first=1 if space.first and records else None,
        winner=int(winner.name),
        finals=[_final(record, space) for record in finals],
        facts={
            "data": f"{experiment.data.source}: {describe_counts(inputs.dataset)}",
            "data fingerprint": inputs.dataset.fingerprint,
            "teacher": experiment.teacher.source if experiment.teacher else "none",
            "student": experiment.student.source,
            "trials' seed": str(experiment.seed),
        },
        notes=list(notes),
        mutations=_mutations(records, group.folder / "trials"),
    )


def write_report(folder: Folder, record: SearchRecord, records: Sequence[Record]) -> list[str]:
    """Write the report and its figures into a group's folder.

    Args:
        folder: the group's.
        record: what is told.
        records: the trials.

    Returns:
        Names of the files.
    """
    names = []
    for name, content in search_figures(record).items():
        path = str(PurePosixPath("figures", name).with_suffix(".png"))
        folder.write(path, content)
        names.append(path)
    folder.write("report.md", search_markdown(record))
    names.append("report.md")
    if record.mutations or record.scheduler == "pbt":
        folder.write(TIMELINE, _timeline(records, folder / "trials"))
        names.append(TIMELINE)
    return names


def _row(record: Record, space: Space, folder: Folder) -> TrialRow:
    scores = best_so_far(record.history, space.goals[0].metric)
    seconds = [
        m["time/epoch_seconds"] for m in record.history.values() if "time/epoch_seconds" in m
    ]
    extra: dict[str, float] = {}
    for goal, value in zip(space.goals, goal_values(record, space) or (), strict=False):
        extra[goal.metric.rsplit("/", 1)[-1]] = value
    measured = folder.read_json(latency.FILE)
    if measured is not None:
        extra[LATENCY] = measured["latency_ms"]
    return TrialRow(
        number=int(record.name),
        settings=record.settings,
        state=record.state,
        scores=scores,
        score=score(record, space),
        epochs=record.epochs,
        seconds=sum(seconds) if seconds else None,
        error=record.error,
        extra=extra,
    )


def _differ(base: Experiment, finals: Sequence[Record]) -> str | None:
    """In what final runs were trained otherwise than trials."""
    if not finals:
        return None
    full, found = finals[0].experiment, []
    if full.train.epochs != base.train.epochs:
        found.append(f"for {full.train.epochs} epochs instead of {base.train.epochs}")
    if full.schedule.kind != base.schedule.kind:
        found.append(f"with the {full.schedule.kind} schedule instead of {base.schedule.kind}")
    return " and ".join(found) or None


def _final(record: Record, space: Space) -> FinalRow:
    value = score(record, space) if record.state == "finished" else None
    return FinalRow(
        seed=record.experiment.seed,
        val=float("nan") if value is None else value,
        test=record.result.get(space.goals[0].metric.replace("val/", "test/")),
        state=record.state,
        error=record.error,
    )


def _mutations(records: Sequence[Record], trials: Folder) -> list[dict[str, Any]]:
    """What members took over, one entry per setting, in the order of their epochs."""
    found = []
    for record in records:
        for taken in (trials / record.name).read_json(MUTATIONS) or []:
            found += [
                {
                    "epoch": taken["epoch"],
                    "trial": int(record.name),
                    "donor": int(taken["donor"]),
                    "setting": f"objective.{key}",
                    "new": taken["after"][key],
                }
                for key in taken["after"]
            ]
    return sorted(found, key=lambda item: (item["epoch"], item["trial"]))


def _timeline(records: Sequence[Record], trials: Folder) -> bytes:
    """Parquet: trial, epoch, setting, the value in force, and whose checkpoint it had taken over.

    A member's own past: what it had in force itself in epochs before it took over another.
    """
    rows: list[dict[str, Any]] = []
    for record in records:
        taken = (trials / record.name).read_json(MUTATIONS) or []
        donors = {item["epoch"] + 1: item["donor"] for item in taken}
        objective = record.experiment.objective.model_dump()
        for epoch, metrics in sorted(record.history.items()):
            if epoch == 0:  # the teacher's scores
                continue
            for path in record.settings:
                key = path.rsplit(".", 1)[-1]
                value = metrics.get(f"pbt/{key}", weights_in_force(objective, epoch)[key])
                rows.append(
                    {
                        "trial": record.name,
                        "epoch": epoch,
                        "setting": path,
                        "value": float(value),
                        "taken_over_from": donors.get(epoch),
                    }
                )
    schema = pa.schema(
        [
            ("trial", pa.string()),
            ("epoch", pa.int32()),
            ("setting", pa.string()),
            ("value", pa.float64()),
            ("taken_over_from", pa.string()),
        ]
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return buffer.getvalue()

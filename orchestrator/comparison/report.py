"""A comparison's report: read from its runs' folders, written beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from orchestrator.comparison.request import Request
from orchestrator.data import describe_counts
from orchestrator.inputs import Inputs
from orchestrator.reports.comparison import Arm, Comparison, comparison_markdown
from orchestrator.reports.comparison_figure import draw_comparison
from orchestrator.storage import Folder
from orchestrator.trials.feed import Trial
from orchestrator.trials.group import Group, read_trials


def read_comparison(
    request: Request, group: Group, inputs: Inputs, planned: Sequence[Trial]
) -> Comparison:
    """What the arms' runs have come to.

    Args:
        request: what was asked.
        group: the comparison.
        inputs: an arm's images and networks.
        planned: all runs of all arms.
    """
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
                val_scores={
                    r.experiment.seed: r.result[request.metric.replace("test/", "val/")]
                    for r in finished
                },
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


def write_report(folder: Folder, comparison: Comparison) -> list[str]:
    """Write report, figure and scores into a group's folder; the names of the files."""
    folder.write("comparison.png", draw_comparison(comparison))
    folder.write("report.md", comparison_markdown(comparison, figure="comparison.png"))
    folder.write("scores.json", json.dumps(_scores(comparison), indent=1))
    return ["report.md", "comparison.png", "scores.json"]


def mean_scores(comparison: Comparison) -> dict[str, float]:
    """Each arm's mean, as metrics of the group."""
    means: dict[str, float] = {}
    for arm in comparison.arms:
        name = base = f"mean/{comparison.metric}/{_metric_name(arm.name)}"
        number = 1
        while name in means:  # `a+b` and `a b`
            number += 1
            name = f"{base} {number}"
        if arm.finished:
            means[name] = sum(arm.finished.values()) / len(arm.finished)
    return means


def _scores(comparison: Comparison) -> dict[str, Any]:
    return {
        arm.name: {"settings": dict(arm.settings), comparison.metric: dict(arm.scores)}
        for arm in comparison.arms
    }


def _metric_name(arm: str) -> str:
    """MLflow takes letters, digits and a few signs in the name of a metric."""
    kept = (sign if sign.isalnum() or sign in "_-. /" else "_" for sign in arm.replace("+", " "))
    return "".join(kept)

"""What MLflow is told of a run, before and after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.data import describe_counts
from orchestrator.data.balance import CLASS_TABLE, class_table
from orchestrator.environment import describe_environment, git_commit
from orchestrator.experiment_file import flatten, yaml_text
from orchestrator.inputs import Inputs, Teacher
from orchestrator.lineage import Chain
from orchestrator.mlflow_client import without_password
from orchestrator.places import Places
from orchestrator.runs import Run
from orchestrator.spec import Experiment
from orchestrator.tracking import Tracker, reopen, request_tracking


def lineage(inputs: Inputs, teacher: Teacher | None) -> dict[str, str]:
    """Where a student comes from, as tags."""
    tags = {
        "data.source": inputs.experiment.data.source,
        "data.fingerprint": inputs.dataset.fingerprint,
        "data.split_seed": str(inputs.experiment.data.split_seed),
    }
    tags |= inputs.start.tags if inputs.start else {}
    tags |= teacher.lineage if teacher else {}
    return tags | (teacher.chain if teacher else Chain()).tags()


def start_tracking(
    run: Run, inputs: Inputs, teacher: Teacher | None, places: Places, *, role: str
) -> Tracker | None:
    """Write down what MLflow is to know, and begin to send; None with tracking off."""
    experiment, folder = run.experiment, run.folder
    if places.tracking_uri is None:
        return None
    values = shown_values(experiment)
    request_tracking(
        folder,
        uri=places.tracking_uri,
        experiment=experiment.tracking.experiment,
        run_name=experiment.name,
        tags={
            **lineage(inputs, teacher),
            "dcd.role": role,
            "dcd.run_folder": folder.location,
            "git.commit": git_commit() or "unknown",
            "mlflow.note.content": _note(experiment, teacher),
        },
        params={key: str(value) for key, value in flatten(values).items()},
        texts={
            "spec.yaml": yaml_text(values),
            "environment.txt": describe_environment(),
            CLASS_TABLE: class_table(inputs.dataset, {}),
        },
        dataset={
            "name": experiment.data.source,
            "digest": inputs.dataset.fingerprint,
            "source": experiment.data.path or experiment.data.source,
            "profile": json.dumps({"counts": describe_counts(inputs.dataset)}),
        },
        artifact_root=places.artifact_root,
        register=experiment.tracking.register_as,
    )
    reopen(folder)
    tracker = Tracker(folder)
    tracker.start()
    return tracker


def shown_values(experiment: Experiment) -> dict[str, Any]:
    """The spec as it may be shown: without a password in the tracking URI."""
    values = experiment.model_dump(mode="json")
    if values["tracking"]["uri"] is not None:
        values["tracking"]["uri"] = without_password(values["tracking"]["uri"])
    return values


def final_metrics(result: Mapping[str, float]) -> dict[str, float]:
    """What the end adds to the curves; there, `val/top1` is each epoch's and not the best."""
    known = ("val/", "teacher/val")
    final = {key: value for key, value in result.items() if not key.startswith(known)}
    return final | {"val/top1_best": result["val/top1"]}


def _note(experiment: Experiment, teacher: Teacher | None) -> str:
    """The run's description in the UI: what it is, and what to look at."""
    student, method = experiment.student.source, experiment.objective.method
    taught = f" from **{teacher.spec.source}**" if teacher is not None else ""
    chain = teacher.chain.teachers if teacher is not None else ()
    if len(chain) > 1:
        taught += f", distillation {len(chain)} of the chain {' → '.join((*chain, student))}"
    curves = "`train/*` are the unweighted terms of the loss, `val/top1` the student's accuracy (%)"
    if experiment.objective.uses_dcd:
        curves += ", `dcd/temperature` and `dcd/bias` what the contrast has learned"
    return (
        f"**{student}** trained with **{method}**{taught}.\n\n"
        f"By epoch: {curves}. At the end: `test/top1` of the student with the best validation "
        "accuracy, which is also the logged model. `spec.yaml` under Artifacts repeats the run."
    )

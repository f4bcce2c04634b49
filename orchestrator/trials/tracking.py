"""What MLflow is told of a group and of its trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from typing import Any

from orchestrator.data import describe_counts
from orchestrator.data.balance import CLASS_TABLE, class_table
from orchestrator.environment import describe_environment, git_commit
from orchestrator.experiment_file import yaml_text
from orchestrator.inputs import Inputs, Teacher
from orchestrator.places import Places
from orchestrator.run_tracking import lineage, shown_values
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.tracking import reopen, request_tracking
from orchestrator.trials.feed import Trial
from orchestrator.trials.group import create_trial


def request_group(
    folder: Folder,
    experiment: Experiment,
    inputs: Inputs,
    teacher: Teacher | None,
    places: Places,
    *,
    role: str,
    params: Mapping[str, Any],
    note: str,
    texts: Mapping[str, str],
) -> None:
    """Write down what MLflow is to know of the parent run; nothing with tracking off.

    Args:
        folder: the group's.
        experiment: what its trials vary.
        inputs: the experiment's images and networks.
        teacher: with its weights.
        places: where things are.
        role: what the group is: `search` or `comparison`.
        params: the run's parameters.
        note: its description in the UI.
        texts: further text artifacts by path.
    """
    if places.tracking_uri is None:
        return
    request_tracking(
        folder,
        uri=places.tracking_uri,
        experiment=experiment.tracking.experiment,
        run_name=folder.location.rsplit("/", 1)[-1],
        tags={
            **lineage(inputs, teacher),
            "dcd.role": role,
            "dcd.run_folder": folder.location,
            "git.commit": git_commit() or "unknown",
            "mlflow.note.content": note,
        },
        params=params,
        texts={
            "spec.yaml": yaml_text(shown_values(experiment)),
            "environment.txt": describe_environment(),
            CLASS_TABLE: class_table(inputs.dataset, {}),
            **texts,
        },
        dataset={
            "name": experiment.data.source,
            "digest": inputs.dataset.fingerprint,
            "source": experiment.data.path or experiment.data.source,
            "profile": json.dumps({"counts": describe_counts(inputs.dataset)}),
        },
        artifact_root=places.artifact_root,
    )
    reopen(folder)


def request_trial(
    folder: Folder,
    experiment: Experiment,
    settings: Mapping[str, Any],
    places: Places,
    *,
    group: Folder,
    role: str,
    tags: Mapping[str, str],
) -> None:
    """Write down what MLflow is to know of one trial; nothing with tracking off.

    Args:
        folder: the trial's.
        experiment: the trial's own, whole.
        settings: what sets it apart, which become its parameters.
        places: where things are.
        group: the folder of the group, its parent.
        role: what it is to the group: `trial`, `final` or `arm`.
        tags: further tags.
    """
    if places.tracking_uri is None:
        return
    request_tracking(
        folder,
        uri=places.tracking_uri,
        experiment=experiment.tracking.experiment,
        run_name=experiment.name,
        tags={"dcd.role": role, "dcd.run_folder": folder.location, **tags},
        params={key: str(value) for key, value in settings.items()},
        texts={"spec.yaml": yaml_text(shown_values(experiment))},
        dataset=None,
        artifact_root=places.artifact_root,
        parent=group,
    )


def creator(
    trials: Folder,
    places: Places,
    *,
    group: Folder,
    role: str,
    known: Container[str],
    tags: Callable[[Trial], Mapping[str, str]],
) -> Callable[[Trial], None]:
    """What writes a trial down before it starts, for `run_trials`.

    Args:
        trials: holds the trials' folders.
        places: where things are.
        group: the folder of the group.
        role: what a trial is to the group: `trial`, `final` or `arm`.
        known: names of trials that are written down already.
        tags: a trial's further tags in MLflow.
    """

    def create(trial: Trial) -> None:
        folder = trials / trial.name
        if trial.name not in known:
            create_trial(folder, trial.experiment, trial.settings, **trial.details)
        request_trial(
            folder,
            trial.experiment,
            trial.settings,
            places,
            group=group,
            role=role,
            tags=tags(trial),
        )

    return create

"""What a finished run prints: its scores, and where to find what it left."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.computation import describe_computation
from orchestrator.distillation import Outcome
from orchestrator.mlflow_client import without_password
from orchestrator.places import storage_folder, tracking_place
from orchestrator.spec import Experiment
from orchestrator.tracking import default_tracking_uri, has_pending


def describe_outcome(outcome: Outcome, spec: Experiment) -> str:
    """The result as text."""
    metrics, location = outcome.metrics, outcome.folder.location
    lines = [f"{outcome.run} is already finished: {location}"] if outcome.already_finished else []
    lines += ["", f"{'':<28}{'val top-1':>10}{'test top-1':>12}"]
    best = f"student, best epoch ({metrics['best_epoch']:.0f})"
    for name, val, test in (
        ("teacher", metrics.get("teacher/val_top1"), metrics.get("teacher/test_top1")),
        (best, metrics["val/top1"], metrics.get("test/top1")),
        ("student, last epoch", metrics["val/top1_last"], metrics.get("test/top1_last")),
    ):
        if val is not None:
            test_text = "-" if test is None else f"{test:.2f} %"
            lines.append(f"{name:<28}{val:>8.2f} %{test_text:>12}")
    lines += _by_frequency(metrics)
    lines += ["", f"run      {outcome.run} in {location}"]
    computed = describe_computation(outcome.folder)
    if computed is not None:
        lines.append(f"computed {computed}")
    lines.append(f"student  orchestrator.load_student({location!r})")
    return "\n".join([*lines, *_mlflow_lines(outcome, spec)])


def _by_frequency(metrics: Mapping[str, float]) -> list[str]:
    """Accuracies of frequent and rare classes, where training images are unbalanced."""
    prefix = "test/top1_"
    groups = ((name, metrics.get(f"{prefix}{name}")) for name in ("many", "medium", "few"))
    shown = [f"{name} {value:.2f} %" for name, value in groups if value is not None]
    return ["", f"test top-1 of classes by training images: {', '.join(shown)}"] if shown else []


def storage_option(spec: Experiment) -> str:
    """What a command in this directory must be told to find the experiment's runs."""
    location = storage_folder(spec.storage.path).location
    here = location == str(Path.cwd() / "dcd_runs")
    return "" if here else f" --storage {shlex.quote(location)}"


def _mlflow_lines(outcome: Outcome, spec: Experiment) -> list[str]:
    if outcome.already_finished and has_pending(outcome.folder):
        return [unsent_line(outcome.run, "left from before", spec)]
    report, lines = outcome.tracking, []
    if report is not None and report.model_uri:
        lines.append(f"MLflow   mlflow.pyfunc.load_model({report.model_uri!r})")
    if report is not None and report.pending:
        lines.append(unsent_line(outcome.run, report.pending, spec))
    elif spec.tracking.enabled:
        lines.append(browse_line(spec))
    return lines


def browse_line(spec: Experiment) -> str:
    """How to look at an experiment's runs."""
    return f"browse   dcd ui{_uri_option(spec)}"


def unsent_line(name: str, reason: str, spec: Experiment) -> str:
    """How to send what MLflow has not got."""
    command = f"dcd sync {name}{storage_option(spec)}"
    return f"MLflow   not all is sent yet ({reason}): `{command}` sends it"


def tracking_line(name: str, pending: Iterable[str], spec: Experiment) -> list[str]:
    """What a group's summary says of MLflow: what is left to send, or how to look at it."""
    for reason in pending:
        return [unsent_line(name, reason, spec)]
    return [browse_line(spec)] if spec.tracking.enabled else []


def _uri_option(spec: Experiment) -> str:
    """What `dcd ui` in this directory must be told to show the experiment's runs."""
    uri, _ = tracking_place(spec.tracking.uri)
    known = (default_tracking_uri(Path.cwd()), os.environ.get("MLFLOW_TRACKING_URI"))
    return "" if uri in known else f" --uri {shlex.quote(without_password(uri))}"

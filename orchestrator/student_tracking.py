"""A finished run's student in MLflow: logged as a model, and registered when that is asked for."""

from __future__ import annotations

import hashlib
from typing import Any

from orchestrator.errors import UserError
from orchestrator.journal import Journal
from orchestrator.mlflow_registry import SELECTION_METRIC, Score, register_student
from orchestrator.mlflow_run import Destination, log_values
from orchestrator.mlflow_student import NotExportable, log_student
from orchestrator.storage import Folder
from orchestrator.student_model import SOURCE_FILE, read_package
from orchestrator.tracking_files import must_register


def send_student(
    to: Destination,
    run: Folder,
    *,
    request: dict[str, Any],
    finish: dict[str, Any],
    state: dict[str, Any],
    journal: Journal,
) -> str | None:
    """Log and register the student, unless that has been done.

    Args:
        to: where the run is.
        run: the run's folder, with the package in ``student/``.
        request: what was requested of the run.
        finish: how it ended.
        state: how far sending has come; what is achieved is noted in it.
        journal: the run's journal.

    Returns:
        Why it cannot be done; None when it is.
    """
    package, run_id = run / "student", state["run_id"]
    source = package.read(SOURCE_FILE)
    if source is None:
        return None
    digest = hashlib.sha256(source).hexdigest()[:16]
    about = read_package(package.location)
    if state.get("model", {}).get("digest") != digest:
        try:
            model_id = log_student(
                to.client,
                package,
                run_id=run_id,
                step=finish["step"],
                params=request["params"],
                digest=digest,
            )
        except (NotExportable, UserError) as error:
            return f"the student cannot become an MLflow model: {error}"
        points = journal.points()
        scores = {p.name: p for p in points if about.metrics.get(p.name) == p.value}
        log_values(to.client, run_id, scores.values(), model_id=model_id)
        state["model"] = {"digest": digest, "id": model_id}
    if must_register(state, request, finish):
        name, model_id = request["register"], state["model"]["id"]
        try:
            score = Score(
                SELECTION_METRIC,
                about.metrics[SELECTION_METRIC],
                about.lineage["data.fingerprint"],
                about.lineage["data.split_seed"],
            )
        except KeyError as error:
            return f"the student cannot be registered: its package does not tell {error}"
        register_student(
            to.client, model_id, name, run_id=run_id, score=score, lineage=about.lineage
        )
        state["registered"] = {"name": name, "model": model_id}
    return None

"""Where runs are tracked and kept."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from orchestrator.spec.base import Count, Section

MODEL_NAME_PATTERN = r"^[^/:]*[^/:\s][^/:]*$"
"""What MLflow takes as the name of a registered model."""


class TrackingSpec(Section):
    """Where MLflow keeps the run."""

    enabled: bool = True
    """Track with MLflow."""
    uri: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI, else SQLite beside the storage."""
    experiment: str = Field("dcd", min_length=1)
    """MLflow experiment."""
    register_as: str | None = Field(None, alias="register", pattern=MODEL_NAME_PATTERN)
    """Register the student under this model name."""

    model_config = ConfigDict(
        validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


class StorageSpec(Section):
    """Where runs, checkpoints and results are kept."""

    path: str | None = None
    """Folder or URI; by default `dcd_runs` in the working directory (see README for clusters)."""
    keep: Count = 2
    """How many of the newest checkpoints are kept, beside the best."""

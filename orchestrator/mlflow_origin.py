"""Whose model it is that MLflow has."""

from __future__ import annotations

from orchestrator.errors import UserError
from orchestrator.mlflow_client import Unreachable, connect


def run_of_model(uri: str, *, tracking_uri: str) -> str:
    """The id of the run that has logged a model.

    Args:
        uri: ``models:/name@alias``, ``models:/name/1``, ``models:/m-…`` or ``runs:/id/student``.
        tracking_uri: where MLflow is.

    Raises:
        UserError: there is no such model, or no such server.
    """
    from mlflow.exceptions import MlflowException

    kind, _, rest = uri.removeprefix("mlflow:").partition(":/")
    if kind == "runs":
        return rest.partition("/")[0]
    try:
        with connect(tracking_uri) as client:
            if "@" in rest:
                return str(client.get_model_version_by_alias(*rest.split("@", 1)).run_id)
            if "/" in rest:
                return str(client.get_model_version(*rest.split("/", 1)).run_id)
            return str(client.get_logged_model(rest).source_run_id)
    except Unreachable as error:
        raise UserError(f"{uri}: {error}") from error
    except MlflowException as error:
        raise UserError(f"{uri}: MLflow says: {str(error).splitlines()[0]}") from error

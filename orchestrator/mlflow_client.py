"""An MLflow client that is quick to give up, quiet, and leaves no trace in this process."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

# By default MLflow tries a dead server for four minutes per call, prints links and progress bars,
# and phones home. These hold only while this module talks to a server, and only where the user has
# not chosen otherwise.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_NOISY_LOGGERS = ("mlflow", "alembic")
_PROBE_TIMEOUT_S = 3.0


class Unsent(Exception):
    """Something stays unsent, for the reason that the message gives."""


class Unreachable(Unsent):
    """Nothing useful answers at the tracking URI."""


@contextmanager
def connect(uri: str, *, timeout_s: float = _PROBE_TIMEOUT_S) -> Iterator[MlflowClient]:
    """A client for a tracking URI, to be used with explicit ids only.

    Args:
        uri: where MLflow keeps its runs.
        timeout_s: how long a server may take for its first sign of life.

    Raises:
        Unreachable: an HTTP server does not answer.
    """
    check_reachable(uri, timeout_s=timeout_s)
    if uri.startswith("sqlite:////"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    with _quick_and_quiet():
        from mlflow import MlflowClient

        yield MlflowClient(
            tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri
        )


def check_reachable(uri: str, *, timeout_s: float = _PROBE_TIMEOUT_S) -> None:
    """Ask an HTTP tracking server for a sign of life; other URIs pass.

    Raises:
        Unreachable: it does not answer within the time, or a gateway says that it is down.
    """
    if not is_http(uri):
        return
    import requests

    shown = without_password(uri)
    try:
        status = requests.get(
            f"{uri.rstrip('/')}/health", timeout=timeout_s, allow_redirects=False
        ).status_code
    except requests.exceptions.SSLError:
        return  # it answers; MLflow has settings of its own for certificates
    except requests.exceptions.Timeout as error:
        raise Unreachable(f"the MLflow server at {shown} does not answer") from error
    except requests.exceptions.RequestException as error:
        raise Unreachable(f"there is no MLflow server at {shown}") from error
    if status in (502, 503, 504):
        raise Unreachable(f"the MLflow server at {shown} is down (HTTP {status})")


def is_http(uri: str) -> bool:
    """Whether a tracking URI names a server, and not a database."""
    return uri.startswith(("http://", "https://"))


def without_password(uri: str) -> str:
    """A URI as it may be shown."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


_lock = threading.Lock()
_users = 0
_added: list[str] = []
_levels: dict[str, int] = {}


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Apply ``_ENVIRONMENT`` and silence MLflow's loggers; the last thread to leave undoes both."""
    global _users
    with _lock:
        if _users == 0:
            _added[:] = [name for name in _ENVIRONMENT if name not in os.environ]
            os.environ.update({name: _ENVIRONMENT[name] for name in _added})
            import mlflow  # noqa: F401  # it sets the levels of its loggers when imported

            for name in _NOISY_LOGGERS:
                _levels[name] = logging.getLogger(name).level
                logging.getLogger(name).setLevel(logging.ERROR)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for name in _added:
                    os.environ.pop(name, None)
                for name, level in _levels.items():
                    logging.getLogger(name).setLevel(level)

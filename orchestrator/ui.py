"""The MLflow UI in the foreground, for a database that no server serves yet."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO

import psutil

from orchestrator.errors import Interrupted, RunFailed, UserError
from orchestrator.mlflow_client import is_http, without_password

_START_TIMEOUT_S = 120.0
"""A new database takes 10 s; a busy machine several times that."""
_STOP_TIMEOUT_S = 5.0


def serve_ui(
    uri: str, *, host: str = "127.0.0.1", port: int = 5000, artifact_root: str | None = None
) -> int:
    """Serve a tracking database until a signal comes, then end the server with all its processes.

    Args:
        uri: tracking URI; for one that is a server already, only its address is printed.
        host: address to listen on.
        port: port to listen on.
        artifact_root: where experiments that are made in the UI keep their artifacts.

    Returns:
        The server's exit code; 0 when none had to be started.

    Raises:
        UserError: the address cannot be listened on.
        RunFailed: the server does not start.
        Interrupted: SIGINT or SIGTERM came; the server is gone.
    """
    if is_http(uri):
        print(f"The MLflow UI is at {without_password(uri)}", flush=True)
        return 0
    _check_free(host, port)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    if artifact_root is not None:
        command += ["--default-artifact-root", artifact_root, "--no-serve-artifacts"]
    # Job execution starts ten more processes that only MLflow's GenAI features use.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with tempfile.TemporaryFile() as log, _signals_raise():
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            _wait_until_up(server, host, port, log)
            print(f"The MLflow UI is at http://{host}:{port} (Ctrl-C ends it)", flush=True)
            return server.wait()
        finally:
            _end_group(server)


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port} ({error.strerror or error}): "
                "give another one with --port or --host"
            ) from error


def _wait_until_up(server: subprocess.Popen[bytes], host: str, port: int, log: IO[bytes]) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{reachable}:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    outcome = "does not answer" if server.poll() is None else f"ended (code {server.returncode})"
    raise RunFailed(f"the MLflow server {outcome}: {(errors or lines)[-1]}")


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` once; where signals can't be set, leave them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for known in before:
            signal.signal(known, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """End the server and every process it started; they share its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        if _members(server.pid):
            os.killpg(server.pid, number)
        while time.monotonic() < deadline:
            server.poll()  # reap it
            if not _members(server.pid):
                return
            time.sleep(0.05)


def _members(group: int) -> list[int]:
    """Living processes of a process group; a zombie waits for its parent only."""
    members = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
        except ProcessLookupError:
            continue
    return members

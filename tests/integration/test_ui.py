"""`serve_ui` in a process of its own: it starts, shows what is there, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from service import free_port, wait_until_free

from orchestrator.errors import RunFailed, UserError
from orchestrator.journal import Journal
from orchestrator.storage import Folder
from orchestrator.tracking import (
    default_tracking_uri,
    finish_request,
    request_tracking,
    sync_run,
)
from orchestrator.ui import serve_ui

pytestmark = pytest.mark.mlflow

SERVE = textwrap.dedent(
    """
    import sys
    from orchestrator.errors import Interrupted
    from orchestrator.ui import serve_ui
    try:
        sys.exit(serve_ui(sys.argv[1], port=int(sys.argv[2]), artifact_root=sys.argv[3]))
    except Interrupted as error:
        sys.exit(error.exit_code)
    """
)


@contextmanager
def served(uri: str, artifact_root: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that serves the UI, and its port, once it says that it does."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, uri, str(port), str(artifact_root)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        descendants: list[psutil.Process] = []
        try:
            assert process.stdout.readline() == (
                f"The MLflow UI is at http://127.0.0.1:{port} (Ctrl-C ends it)\n"
            )
            descendants = psutil.Process(process.pid).children(recursive=True)
            yield process, port
        finally:
            process.kill()
            for descendant in descendants:  # none is left unless a test fails
                if alive(descendant):
                    descendant.kill()


def alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie waits for a parent that never asks, as in some containers."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def get(request: str | urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content


def post(url: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    return json.loads(get(urllib.request.Request(url, json.dumps(body).encode(), headers)))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_ui_shows_a_local_run_and_ends_with_all_its_processes(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run, uri = Folder(str(tmp_path / "run")), default_tracking_uri(tmp_path)
    artifact_root = tmp_path / "mlartifacts"
    request_tracking(
        run,
        uri=uri,
        experiment="shown",
        run_name="digits",
        tags={},
        params={},
        texts={"spec.yaml": "name: digits\n"},
        artifact_root=str(artifact_root),
    )
    Journal(run).append({"train/loss": 2.0}, step=1)
    finish_request(run, status="FINISHED", metrics={}, tags={}, student=False)
    run_id = sync_run(run).run_id
    with served(uri, artifact_root) as (process, port):
        address = f"http://127.0.0.1:{port}"
        assert b"<html" in get(address).lower()
        found = post(f"{address}/api/2.0/mlflow/runs/search", {"experiment_ids": ["0", "1"]})[
            "runs"
        ]
        assert [item["info"]["run_id"] for item in found] == [run_id]
        text = get(f"{address}/get-artifact?path=spec.yaml&run_uuid={run_id}")
        assert text == b"name: digits\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert children

        process.send_signal(number)

        assert process.wait(timeout=15) == code
        assert [child for child in children if alive(child)] == []
        wait_until_free(port, timeout_s=1)


def test_a_second_signal_does_not_leave_the_server_behind(tmp_path: Path) -> None:
    with served(default_tracking_uri(tmp_path), tmp_path / "artifacts") as (process, port):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=15)
        assert [child for child in children if alive(child)] == []
        wait_until_free(port, timeout_s=1)


def test_a_server_that_dies_by_itself_ends_the_command_and_what_it_left(tmp_path: Path) -> None:
    with served(default_tracking_uri(tmp_path), tmp_path / "artifacts") as (process, port):
        [server] = psutil.Process(process.pid).children()
        workers = server.children(recursive=True)
        assert workers
        server.kill()
        assert process.wait(timeout=15) != 0
        assert [worker for worker in workers if alive(worker)] == []
        wait_until_free(port, timeout_s=1)


def test_a_taken_port_is_a_mistake_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*--port"):
            serve_ui(default_tracking_uri(tmp_path), port=port)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_not_ours_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1"):
        serve_ui(default_tracking_uri(tmp_path), host="192.0.2.1", port=free_port())


def test_a_tracking_server_is_named_and_none_is_started(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert serve_ui("http://me:secret@tracking.example:5000") == 0
    assert capsys.readouterr().out == "The MLflow UI is at http://tracking.example:5000\n"


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(b"this is no database" * 100)
    port = free_port()
    with pytest.raises(RunFailed, match=re.compile("the MLflow server ended .*database", re.S)):
        serve_ui(f"sqlite:///{database}", port=port)
    wait_until_free(port, timeout_s=1)

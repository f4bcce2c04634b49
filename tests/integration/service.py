"""A server in a process group of its own, on a port of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


class Service:
    """Started and ended as a context; `kill` and `start` again take the same port, as after a
    crash."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        log: Path,
        health: str = "/",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
        command: arguments for Python.
        port: where it listens.
        log: file that gets its output.
        health: path that answers when it is up.
        environment: variables beside those of this process.
        """
        self.port = port
        self._command, self._log, self._health = command, log, health
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self, *, timeout_s: float = 120.0) -> None:
        """Start and wait until it answers."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command],
                stdout=log,
                stderr=log,
                env=os.environ | self._environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{self.port}{self._health}", timeout=2
                ):
                    return
            except OSError:
                time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"no server: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL to the whole group, as when the machine goes down."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        wait_until_free(self.port)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_free(port: int, *, timeout_s: float = 20.0) -> None:
    """Wait until nothing listens on a port."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"port {port} is still in use")

"""A real object store in a process of its own, which pyarrow and Ray reach as they reach S3."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mlflow_server import free_port
from pyarrow.fs import FileSystem

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


class ObjectStore:
    """Moto's S3 on a free port; what it holds is gone with it."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.environment = CREDENTIALS | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        """What a process needs to reach it at ``s3://BUCKET``."""
        self._log = log

    def __enter__(self) -> ObjectStore:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}", timeout=2):
                    return self
            except OSError:
                time.sleep(0.1)
        self._end()
        raise RuntimeError(f"no object store: {self._log.read_text()[-2000:]}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def put(self, folder: Path, uri: str) -> None:
        """Upload all files of a folder; the environment must be set."""
        filesystem, root = FileSystem.from_uri(f"{uri}?allow_bucket_creation=true")
        filesystem.create_dir(root)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with filesystem.open_output_stream(
                    f"{root}/{path.relative_to(folder).as_posix()}"
                ) as stream:
                    stream.write(path.read_bytes())

    def _end(self) -> None:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

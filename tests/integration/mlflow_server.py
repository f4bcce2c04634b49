"""A real MLflow server."""

from __future__ import annotations

from pathlib import Path

from service import Service, free_port


class MlflowServer(Service):
    """An MLflow server on a free port, with its SQLite store and artifacts in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        command = ["-m", "mlflow", "server"]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        super().__init__(
            command,
            port=port,
            log=folder / "server.log",
            health="/health",
            environment={
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
        )

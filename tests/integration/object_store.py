"""A real object store, which pyarrow and Ray reach as they reach S3."""

from __future__ import annotations

from pathlib import Path

from pyarrow.fs import FileSystem
from service import Service, free_port


class ObjectStore(Service):
    """Moto's S3 on a free port; what it holds is gone with it."""

    def __init__(self, log: Path) -> None:
        port = free_port()
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        """What a process needs to reach it at ``s3://BUCKET``."""
        super().__init__(
            ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port=port, log=log
        )

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

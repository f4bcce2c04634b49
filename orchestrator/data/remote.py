"""Files behind a URI of pyarrow.fs, with the few methods of a `Path` that image folders need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from orchestrator.error_text import cause
from orchestrator.errors import UserError


@dataclass(frozen=True)
class RemotePath:
    """A file or folder. It pickles, so that any process can read it."""

    filesystem: FileSystem
    path: str
    """In the file system."""
    scheme: str
    """Of the URI, for messages; what may follow in a URI, such as keys, is not repeated."""
    setting: str
    """Which names it, or a folder above it."""

    def __truediv__(self, name: str) -> RemotePath:
        return replace(self, path=f"{self.path}/{name}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def is_dir(self) -> bool:
        """Whether it is a folder; of an object store, the start of an object's name."""
        return bool(self._type() == FileType.Directory)

    def exists(self) -> bool:
        """Whether it is there."""
        return bool(self._type() != FileType.NotFound)

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            UserError: it cannot be read, which is not to be taken for a broken image.
        """
        with _reading(self), self.filesystem.open_input_file(self.path) as stream:
            content: bytes = stream.read()
            return content

    def entries(self, *, recursive: bool) -> list[FileInfo]:
        """What is in the folder, at any depth or directly."""
        with _reading(self):
            found: list[FileInfo] = self.filesystem.get_file_info(
                FileSelector(self.path, recursive=recursive)
            )
            return found

    def name_below(self, found: FileInfo) -> str:
        """The path of an entry below this folder."""
        return str(found.path).removeprefix(self.path).strip("/")

    def lies_in(self, other: RemotePath) -> bool:
        """Whether it is the other folder or below it."""
        inside = f"{self.path}/".startswith(f"{other.path}/")
        return inside and bool(self.filesystem == other.filesystem)

    def _type(self) -> FileType:
        with _reading(self):
            return self.filesystem.get_file_info(self.path).type


def open_uri(uri: str, *, setting: str) -> RemotePath:
    """What a URI stands for, whether there is something or not.

    Raises:
        UserError: pyarrow.fs does not know such URIs.
    """
    try:
        filesystem, path = FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:  # pyarrow's own errors are one of the two
        raise UserError(
            f"{setting}: {uri} cannot be opened ({cause(error)}): name a local path, or a URI that "
            "pyarrow.fs opens, such as s3://bucket/images"
        ) from error
    return RemotePath(filesystem, path.rstrip("/"), uri.partition("://")[0], setting)


@contextmanager
def _reading(path: RemotePath) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"{path.setting}: {path} cannot be read ({cause(error)})") from error

"""A folder of small files that may be local, a shared mount, or any URI that pyarrow.fs opens."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from orchestrator.errors import DamagedFile, UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


class Folder:
    """One folder. Writing a file replaces it at once: readers see the old or the new, never a part.

    Object stores put a file atomically; on a file system it is written beside its place, flushed to
    disk and renamed. Instances pickle, so that a worker on another machine can open the same one.
    """

    def __init__(self, location: str) -> None:
        """Args:
        location: an absolute path or a URI; ``file://`` is taken as the path it names.
        """
        if location.startswith("file://"):
            location = unquote(urlsplit(location).path)
        self.location = location.rstrip("/") or "/"
        self._local = Path(self.location) if "://" not in location else None
        self._remote: tuple[FileSystem, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["location"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Folder({self.location!r})"

    def __truediv__(self, name: str) -> Folder:
        inner = Folder(f"{self.location}/{name}")
        if self._remote is not None:  # one connection for all
            filesystem, root = self._remote
            inner._remote = filesystem, f"{root}/{name}"
        return inner

    @property
    def local_path(self) -> Path | None:
        """The path when the folder is on a file system, else None."""
        return self._local

    def write(self, name: str, content: bytes | str) -> None:
        """Replace a file, making the folders above it."""
        data = content.encode() if isinstance(content, str) else content
        if self._local is None:
            filesystem, root = self.filesystem()
            target = f"{root}/{name}"
            filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            with filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        target_path = self._local / name
        target_path.parent.mkdir(parents=True, exist_ok=True)
        partial = target_path.with_name(f".{target_path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target_path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> bytes | None:
        """A file's content; None when there is none."""
        try:
            if self._local is not None:
                return (self._local / name).read_bytes()
            filesystem, root = self.filesystem()
            with filesystem.open_input_stream(f"{root}/{name}") as stream:
                content: bytes = stream.read()
                return content
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file. NaN and infinities are kept as Python's JSON writes them."""
        self.write(name, json.dumps(value, indent=1))

    def read_json(self, name: str) -> Any:
        """A JSON file's value; None when there is no such file.

        Raises:
            DamagedFile: it is no JSON.
        """
        content = self.read(name)
        try:
            return None if content is None else json.loads(content)
        except ValueError as error:
            raise DamagedFile(
                f"{self.location}/{name} is damaged: it holds no JSON ({error}). Restore it, or "
                "remove the run's folder to start anew"
            ) from error

    def names(self) -> list[str]:
        """Sorted names of what lies directly in the folder, unfinished files left out."""
        if self._local is not None:
            if not self._local.is_dir():
                return []
            found = [entry.name for entry in self._local.iterdir()]
        else:
            from pyarrow.fs import FileSelector

            filesystem, root = self.filesystem()
            selector = FileSelector(root, allow_not_found=True)
            found = [info.base_name for info in filesystem.get_file_info(selector)]
        return sorted(n for n in found if not (n.startswith(".") and n.endswith(".part")))

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing when it is not there."""
        if self._local is not None:
            import shutil

            target = self._local / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
            return
        from pyarrow.fs import FileType

        filesystem, root = self.filesystem()
        info = filesystem.get_file_info(f"{root}/{name}")
        if info.type == FileType.Directory:
            filesystem.delete_dir(info.path)
        elif info.type == FileType.File:
            filesystem.delete_file(info.path)

    def filesystem(self) -> tuple[FileSystem, str]:
        """The same folder for pyarrow: a file system, and the path in it."""
        if self._remote is None:
            from pyarrow.fs import FileSystem, LocalFileSystem

            if self._local is not None:
                self._remote = LocalFileSystem(), self.location
                return self._remote
            try:
                filesystem, root = FileSystem.from_uri(self.location)
            except (ValueError, OSError) as error:
                raise UserError(
                    f"{self.location}: not a URI that pyarrow opens: {error}"
                ) from error
            self._remote = filesystem, root.rstrip("/")
        return self._remote


def check_writable(folder: Folder, *, setting: str) -> None:
    """Raise UserError unless a file can be written; leaves nothing behind where there was nothing.

    Args:
        folder: the folder to try.
        setting: the setting it comes from, for the message.
    """
    parent = folder.local_path
    if parent is not None:
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise UserError(f"{setting}: {folder.location} cannot be a folder: {parent} is a file")
        probe_folder = Folder(str(parent))
    else:
        probe_folder = folder
    probe = f".dcd-write-probe-{uuid.uuid4().hex[:8]}"
    try:
        probe_folder.write(probe, b"")
        probe_folder.delete(probe)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{setting}: {folder.location} is not writable ({reason}): "
            "name a folder that this user may write to"
        ) from error

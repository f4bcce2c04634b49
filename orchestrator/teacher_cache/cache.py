"""The pieces of one teacher on one set of images, wherever they lie."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa

from orchestrator.errors import OrchestratorError
from orchestrator.places import CachePlace
from orchestrator.storage import Folder
from orchestrator.teacher_cache.rows import Damaged, Rows, decode, encode
from orchestrator.teacher_cache.shelf import Piece, Shelf

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raised whenever files, order or augmentation change, so that no older file is read."""
_NETWORK = (
    *("nfs", "cifs", "smb", "afs", "autofs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs"),
    *("wekafs", "panfs", "gfs2", "ocfs2", "pvfs", "orangefs", "virtiofs", "9p", "fuse"),
)
"""How the types of file systems begin whose files another machine may take away while they are
mapped into memory here, which ends a process without an exception."""


class CacheError(Exception):
    """The place of a cache cannot be read or written; training goes on without it."""


_WRONG = (ValueError, LookupError, TypeError, AttributeError, BufferError)
"""What a foreign file, or a driver of an object store, can make code of others raise."""


class Key(NamedTuple):
    """What the teacher's answers depend on, but for the view."""

    about: dict[str, Any]
    """In plain words."""

    @property
    def digest(self) -> str:
        """16 hex digits."""
        text = json.dumps({"format": _FORMAT, **self.about}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Cache:
    """Pieces under one key. Every method raises CacheError where its place fails, and nothing else.

    What lies on an object store or a network file system is fetched once per node, into a folder of
    the node's own.
    """

    def __init__(self, place: CachePlace, key: Key) -> None:
        self.key = key.digest
        self.location = place.location
        self._about = key.about
        self._shelf = Shelf(Folder(place.location), max_bytes=place.max_bytes)
        self._mirror = None
        self.poll_s = 0.02
        """How long to wait before looking again for what another process makes."""
        with guarded():
            local = self._shelf.folder.local_path
            if local is None or _is_on_network(local):
                copies = Folder(str(_mirror_path(place)))
                self._mirror = Shelf(copies, max_bytes=place.max_bytes, is_copy=True)
                self.poll_s = 0.5
        # The node's own first: its processes need not ask the other one for what is there.
        self._shelves = [shelf for shelf in (self._mirror, self._shelf) if shelf is not None]

    def use(self) -> None:
        """Say that the key is in use."""
        with guarded():
            for shelf in self._shelves:
                shelf.use(self.key, self._about)

    def pieces(self, view: int) -> set[Piece]:
        """What there is of a view."""
        with guarded():
            return {piece for shelf in self._shelves for piece in shelf.pieces(self.key, view)}

    def has(self, piece: Piece) -> bool:
        """Whether a piece is there."""
        with guarded():
            return any(shelf.has(self.key, piece) for shelf in self._shelves)

    def open(self, piece: Piece) -> Rows | None:
        """The rows of a piece; None when it is not there, is damaged, or is just being fetched.

        A damaged file is removed.
        """
        with guarded():
            if self._mirror is None:
                return self._decoded(self._shelf, piece)
            if not self._mirror.has(self.key, piece):
                with self._mirror.lease(self.key, piece) as mine:
                    if not mine:
                        return None
                    if not self._mirror.has(self.key, piece):
                        content = self._shelf.read(self.key, piece)
                        if content is None:
                            return None
                        rows = self._decoded(self._shelf, piece, content)
                        if rows is None or not self._mirror.write(self.key, piece, content):
                            return rows
            return self._decoded(self._mirror, piece)

    def keep(self, piece: Piece, rows: Rows) -> bool:
        """Write a piece, if there is room; whether it is kept."""
        with guarded():
            content = encode(rows, self._stamp(piece))
            kept = self._shelf.write(self.key, piece, content)
            if self._mirror is not None:
                with contextlib.suppress(OSError):  # a copy is fetched when it is read, then
                    self._mirror.write(self.key, piece, content)
            return kept

    def publish(self, piece: Piece) -> bool:
        """See that a piece of which there is a copy here lies where all nodes look; whether it
        does."""
        with guarded():
            if self._mirror is not None and not self._shelf.has(self.key, piece):
                content = self._mirror.read(self.key, piece)
                return content is not None and self._shelf.write(self.key, piece, content)
            return True

    @contextlib.contextmanager
    def lease(self, piece: Piece) -> Iterator[bool]:
        """Whether this process is the one to make a piece, as long as the context lasts."""
        stack = contextlib.ExitStack()
        try:
            with guarded():
                # One that is not had on this node is not asked for beyond it.
                mine = all(
                    stack.enter_context(shelf.lease(self.key, piece)) for shelf in self._shelves
                )
            yield mine
        finally:
            with contextlib.suppress(CacheError), guarded():
                stack.close()

    def _decoded(self, shelf: Shelf, piece: Piece, content: bytes | None = None) -> Rows | None:
        try:
            source = shelf.path(self.key, piece) if content is None else content
            return decode(source, self._stamp(piece))
        except FileNotFoundError:
            return None
        except Damaged as error:
            logger.warning("%s: removed", error)
            shelf.delete(self.key, piece)
            return None

    def _stamp(self, piece: Piece) -> dict[bytes, bytes]:
        return {b"dcd.key": self.key.encode(), b"dcd.piece": piece.name.encode()}


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Whatever a file system, an object store or a foreign file can do ends in one error."""
    try:
        yield
    except (OSError, pa.ArrowException, RuntimeError, *_WRONG) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CacheError(text) from error
    except OrchestratorError as error:
        raise CacheError(str(error)) from error


def _mirror_path(place: CachePlace) -> Path:
    """A folder of this node's and this user's own."""
    own = hashlib.sha256(place.location.encode()).hexdigest()[:8]
    path = Path(tempfile.gettempdir()) / f"dcd-teacher-cache-{os.getuid()}"
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path / own


def _is_on_network(path: Path) -> bool:
    """Whether other machines may write a folder."""
    resolved = str(path.resolve())
    best, kind = "", ""
    for mount in psutil.disk_partitions(all=True):
        inside = resolved == mount.mountpoint or resolved.startswith(f"{mount.mountpoint}/")
        if (inside or mount.mountpoint == "/") and len(mount.mountpoint) >= len(best):
            best, kind = mount.mountpoint, mount.fstype
    return kind.startswith(_NETWORK)

"""The pieces of one teacher on one set of images, wherever they lie."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.places import CachePlace
from orchestrator.storage import Folder
from orchestrator.teacher_cache.rows import Damaged, Rows, decode, encode
from orchestrator.teacher_cache.shelf import Piece, Shelf

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raised whenever files, order or augmentation change, so that no older file is read."""


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
    """Pieces under one key.

    What lies on an object store is fetched once per node, into a folder of the node's own.
    """

    def __init__(self, place: CachePlace, key: Key) -> None:
        self.key = key.digest
        self._about = key.about
        self._shelf = Shelf(Folder(place.location), max_bytes=place.max_bytes)
        self._mirror = None
        self.poll_s = 0.02
        """How long to wait before looking again for what another process makes."""
        if self._shelf.folder.local_path is None:
            own = hashlib.sha256(place.location.encode()).hexdigest()[:8]
            path = Path(tempfile.gettempdir()) / f"dcd-teacher-cache-{getpass.getuser()}" / own
            self._mirror = Shelf(Folder(str(path)), max_bytes=place.max_bytes)
            self.poll_s = 0.5

    @property
    def location(self) -> str:
        """The place of all keys."""
        return self._shelf.folder.location

    def use(self) -> None:
        """Say that the key is in use.

        Raises:
            OSError: the place cannot be written.
        """
        for shelf in self._shelves():
            shelf.use(self.key, self._about)

    def pieces(self, view: int) -> set[Piece]:
        """What there is of a view."""
        return {piece for shelf in self._shelves() for piece in shelf.pieces(self.key, view)}

    def has(self, piece: Piece) -> bool:
        """Whether a piece is there."""
        return any(shelf.has(self.key, piece) for shelf in self._shelves())

    def open(self, piece: Piece) -> Rows | None:
        """The rows of a piece; None when it is not there, is damaged, or is just being fetched."""
        content: bytes | None = None
        if self._mirror is not None and not self._mirror.has(self.key, piece):
            with self._mirror.lease(self.key, piece) as mine:
                if not mine:
                    return None
                content = self._shelf.read(self.key, piece)
                if content is None or self._mirror.write(self.key, piece, content):
                    content = None
        shelf = self._mirror or self._shelf
        try:
            source = shelf.path(self.key, piece) if content is None else content
            return decode(source, self._stamp(piece))
        except FileNotFoundError:
            return None
        except Damaged as error:
            logger.warning("%s: removed, and computed again", error)
            with contextlib.suppress(OSError):
                for each in self._shelves():
                    each.delete(self.key, piece)
            return None

    def keep(self, piece: Piece, rows: Rows) -> bool:
        """Write a piece, if there is room; whether it is kept.

        Raises:
            OSError: it cannot be written.
        """
        content = encode(rows, self._stamp(piece)).to_pybytes()
        kept = [shelf.write(self.key, piece, content) for shelf in self._shelves()]
        return any(kept)

    @contextlib.contextmanager
    def lease(self, piece: Piece) -> Iterator[bool]:
        """Whether this process is the one to make a piece, as long as the context lasts.

        Raises:
            OSError: the place cannot be written.
        """
        with contextlib.ExitStack() as stack:
            # The node's own first: the other processes of the node do not ask the object store.
            shelves = reversed(self._shelves())
            yield all(stack.enter_context(shelf.lease(self.key, piece)) for shelf in shelves)

    def _shelves(self) -> list[Shelf]:
        return [self._shelf] + ([self._mirror] if self._mirror is not None else [])

    def _stamp(self, piece: Piece) -> dict[bytes, bytes]:
        return {b"dcd.key": self.key.encode(), b"dcd.piece": piece.name.encode()}

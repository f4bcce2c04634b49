"""Where pieces of the cache lie: who may make one, how much room there is, and what goes first.

FOLDER/KEY/about.json        what the key stands for
FOLDER/KEY/used              touched when a run begins an epoch
FOLDER/KEY/VIEW/PIECE.arrow  answers to some of the images of one view (usually an epoch)
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs

from orchestrator.storage import Folder
from orchestrator.teacher_cache.leases import local_lease, remote_lease

GIB = 2**30

KEY_PATTERN = re.compile(r"[0-9a-f]{16}")
_VIEW_PATTERN = re.compile(r"\d{5}")
_SHARE = 0.25
"""Of what is free: the default budget."""
_RESERVE = (GIB, 0.05)
"""So much stays free for others, in bytes and as a share of the disk, whichever is less."""
_SCAN_S = 5.0
"""How long a count of all that is there holds; what this process adds is counted at once."""
_ACTIVE_S = 600.0
"""A key that a run has begun an epoch with since is in use, and keeps its views."""
_STALE_S = 3600.0
"""Unfinished files of dead processes are removed after this time."""
_LISTING_S = 0.4
"""How long a listing of an object store holds."""


class Piece(NamedTuple):
    """Images `first` to `last` of a view's order, or what one of several ranks has of them."""

    view: int
    first: int
    last: int  # exclusive
    rank: int = 0
    size: int = 1
    micro: int = 0
    """Images of a micro-batch, on which it depends which ones are a rank's; 0 with one rank."""

    @property
    def name(self) -> str:
        """Of its file, below the key."""
        part = f"{self.rank}of{self.size}x{self.micro}"
        return f"{self.view:05d}/{self.first:08d}-{self.last:08d}-{part}.arrow"

    @classmethod
    def of(cls, view: int, file: str) -> Piece | None:
        """From the name of its file; None for another file."""
        try:
            first, last, part = file.removesuffix(".arrow").split("-")
            rank, size = part.split("of")
            return cls(view, int(first), int(last), int(rank), *map(int, size.split("x")))
        except (ValueError, TypeError):
            return None


class View(NamedTuple):
    """The files of one view."""

    key: str
    view: int
    num_bytes: int


class Shelf:
    """A folder of pieces with a budget, which processes and perhaps nodes share.

    Args:
        folder: the place, a path or a URI.
        max_bytes: the budget; by default a share of what is free.
        is_copy: whether it takes no more than that share in any case.
    """

    def __init__(
        self, folder: Folder, *, max_bytes: int | None = None, is_copy: bool = False
    ) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._share_at_most = is_copy or max_bytes is None
        self._counted: tuple[float, int] | None = None  # when, bytes
        self._listed: dict[tuple[str, int], tuple[float, list[Piece]]] = {}

    def pieces(self, key: str, view: int) -> list[Piece]:
        """What there is of a view."""
        remote, now = self.folder.local_path is None, time.monotonic()
        if remote and (key, view) in self._listed:
            at, pieces = self._listed[key, view]
            if now - at < _LISTING_S:
                return pieces
        try:
            names = (self.folder / f"{key}/{view:05d}").names()
        except FileNotFoundError:  # it has just been removed
            names = []
        found = (Piece.of(view, name) for name in names if name.endswith(".arrow"))
        pieces = [piece for piece in found if piece is not None]
        if remote:
            self._listed = {(key, view): (now, pieces)}
        return pieces

    def has(self, key: str, piece: Piece) -> bool:
        """Whether a piece is there."""
        if self.folder.local_path is not None:
            return self.path(key, piece).exists()
        return piece in self.pieces(key, piece.view)

    def path(self, key: str, piece: Piece) -> Path:
        """The file of a piece, on a file system."""
        assert self.folder.local_path is not None
        return self.folder.local_path / key / piece.name

    def read(self, key: str, piece: Piece) -> bytes | None:
        """The bytes of a piece; None when it is not there."""
        return self.folder.read(f"{key}/{piece.name}")

    def write(self, key: str, piece: Piece, content: bytes) -> bool:
        """Keep a piece, if there is room or room can be made; whether it is kept.

        Raises:
            OSError: it cannot be written.
        """
        if not self._make_room(key, piece.view, len(content)):
            return False
        try:
            self.folder.write(f"{key}/{piece.name}", content)
        except FileNotFoundError:  # the view has been removed at this very moment
            self.folder.write(f"{key}/{piece.name}", content)
        self._listed.clear()
        if self._counted is not None:
            self._counted = self._counted[0], self._counted[1] + len(content)
        return True

    def delete(self, key: str, piece: Piece) -> None:
        """Remove a piece."""
        self.folder.delete(f"{key}/{piece.name}")
        self._listed.clear()

    def use(self, key: str, about: dict[str, Any]) -> None:
        """Say what a key stands for, and that it is in use.

        Raises:
            OSError: it cannot be written.
        """
        if self.folder.read(f"{key}/about.json") is None:
            self.folder.write_json(f"{key}/about.json", about)
        self.folder.write(f"{key}/used", b"")

    @contextlib.contextmanager
    def lease(self, key: str, piece: Piece) -> Iterator[bool]:
        """Whether this process may make a piece: nobody else does so as long as this one lives.

        On a file system, the lease goes with the process that holds it, however that ends. On an
        object store, which has no locks, two nodes that ask within the same moment may both get it:
        both then write the same.
        """
        if self.folder.local_path is None:
            with remote_lease(self.folder, f"{key}/{piece.name}.lease") as held:
                yield held
            return
        with local_lease(self.path(key, piece)) as held:
            yield held

    def views(self) -> list[View]:
        """All views of all keys. What else lies in the folder is not looked at."""
        found = []
        for key in self.keys():
            sizes: dict[int, int] = {}
            for info in self._files(key):
                *_, view, name = info.path.split("/")
                if _VIEW_PATTERN.fullmatch(view) and Piece.of(int(view), name) is not None:
                    sizes[int(view)] = sizes.get(int(view), 0) + (info.size or 0)
            found += [View(key, view, sizes[view]) for view in sorted(sizes)]
        return found

    def keys(self) -> list[str]:
        """All keys, which are folders that say what they stand for."""
        names = (name for name in self.folder.names() if KEY_PATTERN.fullmatch(name))
        infos = {name: self._info(f"{name}/about.json") for name in names}
        return [name for name, info in infos.items() if info.type == pyarrow.fs.FileType.File]

    def last_used(self, keys: Iterable[str]) -> dict[str, float]:
        """When a run last began to use each key, in seconds since 1970."""
        infos = {key: self._info(f"{key}/used") for key in keys}
        return {key: info.mtime_ns / 1e9 if info.mtime_ns else 0.0 for key, info in infos.items()}

    def budget(self) -> int | None:
        """The largest size in bytes; None for an object store without a given one."""
        if self._share_at_most and self.folder.local_path is not None:
            used = sum(view.num_bytes for view in self.views())
            share = int(_SHARE * (_free(self.folder.local_path) + used))
            self._max_bytes = share if self._max_bytes is None else min(share, self._max_bytes)
            self._share_at_most = False
        return self._max_bytes

    def _make_room(self, key: str, view: int, num_bytes: int) -> bool:
        """Remove what was used least recently and is not in use, then what this key needs last.

        Runs begin with the first epoch, so the views of the key itself go from the last one down,
        and none below the one that is being written: were the oldest to go first, trials that pass
        through more epochs than there is room for would find none of them.
        """
        budget = self.budget()
        if budget is None:
            return True
        now = time.monotonic()
        if self._counted is None or now - self._counted[0] > _SCAN_S:
            self._counted = now, sum(found.num_bytes for found in self.views())
        if self._fits(num_bytes, budget):
            return True
        views = self.views()
        self._counted = now, sum(found.num_bytes for found in views)
        used = self.last_used({found.key for found in views} - {key})
        others = [v for v in views if v.key != key and time.time() - used[v.key] > _ACTIVE_S]
        others.sort(key=lambda v: (used[v.key], v.key, -v.view))
        own = sorted((v for v in views if v.key == key and v.view > view), key=lambda v: -v.view)
        for victim in [*others, *own]:
            if self._fits(num_bytes, budget):
                break
            self.remove(f"{victim.key}/{victim.view:05d}")
            self._counted = now, self._counted[1] - victim.num_bytes
        return self._fits(num_bytes, budget)

    def remove(self, name: str) -> None:
        """Remove a key or a view, whatever other processes remove of it or write meanwhile."""
        for _ in range(3):
            try:
                self.folder.delete(name)
                return
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise

    def _fits(self, num_bytes: int, budget: int) -> bool:
        assert self._counted is not None
        if self._counted[1] + num_bytes > budget:
            return False
        local = self.folder.local_path
        if local is None:
            return True
        total = shutil.disk_usage(_existing(local)).total
        return _free(local) - num_bytes > min(_RESERVE[0], _RESERVE[1] * total)

    def _files(self, key: str) -> list[pyarrow.fs.FileInfo]:
        filesystem, root = self.folder.filesystem()
        selector = pyarrow.fs.FileSelector(f"{root}/{key}", recursive=True, allow_not_found=True)
        infos: list[pyarrow.fs.FileInfo] = filesystem.get_file_info(selector)
        for info in infos:
            stale = info.mtime_ns and time.time() - info.mtime_ns / 1e9 > _STALE_S
            if stale and info.base_name.startswith(".") and info.base_name.endswith(".part"):
                with contextlib.suppress(OSError):
                    filesystem.delete_file(info.path)
        return infos

    def _info(self, name: str) -> pyarrow.fs.FileInfo:
        filesystem, root = self.folder.filesystem()
        return filesystem.get_file_info(f"{root}/{name}")


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path

"""Who may make a file: one process at a time, and another when that one has died."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from orchestrator.storage import Folder

REMOTE_LEASE_S = 120.0
"""A lease on an object store ends by itself, as nobody there can tell whether its holder lives. Its
holder prolongs it in good time."""


@contextlib.contextmanager
def local_lease(path: Path) -> Iterator[bool]:
    """Whether this process may make a file; the lock goes with the process that holds it."""
    lock = path.with_name(f".{path.name}.lease")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except FileNotFoundError:  # the folder has been removed at this very moment
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(file.fileno()).st_ino == lock.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            held = False  # another has it, or has just had it and removed the file
        try:
            yield held
        finally:
            if held:
                with contextlib.suppress(OSError):
                    lock.unlink()


@contextlib.contextmanager
def remote_lease(folder: Folder, name: str) -> Iterator[bool]:
    """The same by a file that says who holds the lease, and until when."""
    mine = uuid.uuid4().hex
    if _read(folder, name)[1] > time.time():
        yield False
        return
    _write(folder, name, mine)
    if _read(folder, name)[0] != mine:
        yield False
        return
    done = threading.Event()
    prolonging = threading.Thread(target=_prolong, args=(folder, name, mine, done), daemon=True)
    prolonging.start()
    try:
        yield True
    finally:
        done.set()
        prolonging.join()
        with contextlib.suppress(OSError):
            if _read(folder, name)[0] == mine:  # it may have ended by itself
                folder.delete(name)


def _prolong(folder: Folder, name: str, holder: str, done: threading.Event) -> None:
    while not done.wait(REMOTE_LEASE_S / 3):
        with contextlib.suppress(OSError):  # the next time, perhaps
            if _read(folder, name)[0] not in (holder, ""):
                return  # it had ended, and another has it
            _write(folder, name, holder)


def _write(folder: Folder, name: str, holder: str) -> None:
    folder.write(name, json.dumps({"holder": holder, "until": time.time() + REMOTE_LEASE_S}))


def _read(folder: Folder, name: str) -> tuple[str, float]:
    """Who holds a lease, and until when; one that cannot be read is nobody's."""
    try:
        content = json.loads(folder.read(name) or "{}")
        return str(content["holder"]), float(content["until"])
    except (ValueError, KeyError, TypeError):
        return "", 0.0

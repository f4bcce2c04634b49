"""What the cache holds, and removing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from orchestrator.error_text import nearest
from orchestrator.errors import DamagedFile, UserError
from orchestrator.reports.tables import Table, text_table
from orchestrator.storage import Folder
from orchestrator.teacher_cache.shelf import GIB, Shelf

_MIB = 2**20


class Entry(NamedTuple):
    """One teacher on one set of images."""

    key: str
    about: dict[str, Any]
    views: list[int]
    num_bytes: int
    used_at: float
    """Seconds since 1970."""


def entries(location: str) -> list[Entry]:
    """What lies in a cache, the most recently used first."""
    shelf = Shelf(Folder(location))
    keys = shelf.keys()
    abouts = {key: _about(shelf.folder, key) for key in keys}
    used = shelf.last_used(keys)
    views = shelf.views()
    found = [
        Entry(
            key,
            abouts[key],
            [view.view for view in views if view.key == key],
            sum(view.num_bytes for view in views if view.key == key),
            used[key],
        )
        for key in keys
    ]
    return sorted(found, key=lambda entry: (-entry.used_at, entry.key))


def _about(folder: Folder, key: str) -> dict[str, Any]:
    """What a key stands for; question marks where its file is damaged."""
    try:
        read = folder.read_json(f"{key}/about.json")
    except DamagedFile:
        read = None
    names = ("teacher", "weights", "source", "images", "data_seed", "precision", "dtype")
    return dict.fromkeys(names, "?") | (read if isinstance(read, dict) else {})


def describe_contents(location: str) -> str:
    """A table."""
    found = entries(location)
    if not found:
        return f"nothing in {location}"
    header = ["key", "teacher", "images", "seed", "precision", "epochs", "MiB", "used"]
    rows = []
    for entry in found:
        about = entry.about
        dtypes = dict.fromkeys((about["precision"], about["dtype"]))
        rows.append(
            [
                entry.key,
                f"{about['teacher']} {about['weights']:.8}",
                f"{about['source']} {about['images']:.8}",
                str(about["data_seed"]),
                " as ".join(dtypes),
                _ranges(entry.views),
                f"{entry.num_bytes / _MIB:,.1f}",
                _ago(entry.used_at),
            ]
        )
    total = sum(entry.num_bytes for entry in found) / _MIB
    return f"{text_table(Table(header, rows))}\n{total:,.1f} MiB in {location}"


def remove(
    location: str,
    *,
    keys: Sequence[str],
    everything: bool,
    older_than_s: float | None,
    max_bytes: int | None,
) -> str:
    """Remove what any of the conditions holds for; says what.

    Raises:
        UserError: there is no such key.
    """
    found = entries(location)
    known = [entry.key for entry in found]
    for key in keys:
        if key not in known:
            raise UserError(f"no {key!r} in {location}{nearest(key, known)}: see `dcd cache ls`")
    now = time.time()
    doomed = {
        entry.key
        for entry in found
        if everything
        or entry.key in keys
        or (older_than_s is not None and now - entry.used_at > older_than_s)
    }
    if max_bytes is not None:
        left = sum(entry.num_bytes for entry in found if entry.key not in doomed)
        for entry in reversed(found):
            if left > max_bytes and entry.key not in doomed:
                doomed.add(entry.key)
                left -= entry.num_bytes
    shelf = Shelf(Folder(location))
    for key in doomed:
        shelf.remove(key)
    freed = sum(entry.num_bytes for entry in found if entry.key in doomed)
    return (
        f"removed {len(doomed)} of {len(found)} teachers' answers, {freed / GIB:,.2f} GiB, from "
        f"{location}"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """1-30, or 1-3 7."""
    if not numbers:
        return "none"
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _ago(at: float) -> str:
    seconds = max(0.0, time.time() - at)
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"

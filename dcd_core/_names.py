"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name that looks most like ``name``; there must be at least one."""
    return difflib.get_close_matches(name, list(valid), n=1, cutoff=0.0)[0]

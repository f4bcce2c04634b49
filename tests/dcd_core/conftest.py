"""Fixtures of the tests of dcd_core."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside the tests

from rank_pool import RankPool


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    """Four processes in a gloo process group, started once."""
    pool = RankPool(4, store=tmp_path_factory.mktemp("ranks") / "store")
    yield pool
    pool.close()

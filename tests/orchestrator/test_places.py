"""Where runs and tracking live."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from orchestrator.places import tracking_place


@pytest.mark.parametrize(
    ("uri", "driver"),
    [
        ("postgresql+psycopg2://me@host/runs", "psycopg2"),
        ("mysql+pymysql://me@host/runs", "pymysql"),
    ],
)
def test_a_database_of_any_kind_keeps_its_artifacts_in_an_absolute_folder(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, uri: str, driver: str
) -> None:
    monkeypatch.setitem(sys.modules, driver, types.ModuleType(driver))

    assert tracking_place(uri) == (uri, f"{workplace}/mlartifacts")


@pytest.mark.parametrize("uri", ["http://host:5000", "https://host", "databricks://profile"])
def test_a_server_decides_for_itself_where_artifacts_go(workplace: Path, uri: str) -> None:
    assert tracking_place(uri) == (uri, None)

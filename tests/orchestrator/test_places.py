"""Where runs and tracking live."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.experiment_file import build_experiment
from orchestrator.places import check_places, find_places, keep_tracking, tracking_place
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.tracking import request_tracking


def experiment(**tracking: object) -> Experiment:
    values = {"name": "a", "objective": {"method": "ce"}, "tracking": tracking}
    return build_experiment(values, where="test")


def test_a_run_that_goes_on_from_another_directory_is_tracked_where_it_was(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec, run = experiment(), Folder(str(workplace / "dcd_runs" / "a"))
    first = find_places(spec)
    assert first.tracking_uri is not None
    assert keep_tracking(first, run, spec) == first  # nothing is known of it yet
    request_tracking(
        run,
        uri=first.tracking_uri,
        experiment="dcd",
        run_name="a",
        tags={},
        params={},
        texts={},
        artifact_root=first.artifact_root,
    )
    (workplace / "other").mkdir()
    monkeypatch.chdir(workplace / "other")
    places = keep_tracking(find_places(spec), run, spec)
    assert places.tracking_uri == f"sqlite:///{workplace}/mlflow.db"
    assert places.artifact_root == f"{workplace}/mlartifacts"
    # What is asked for now decides.
    chosen = experiment(uri="http://host:5000")
    assert keep_tracking(find_places(chosen), run, chosen).tracking_uri == "http://host:5000"
    off = experiment(enabled=False)
    assert keep_tracking(find_places(off), run, off).tracking_uri is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert keep_tracking(find_places(spec), run, spec).tracking_uri == "http://other:5000"


def test_a_database_that_cannot_be_written_is_refused(workplace: Path) -> None:
    (workplace / "file").write_text("")
    spec = experiment(uri=f"sqlite:///{workplace}/file/mlflow.db")
    with pytest.raises(UserError, match=r"tracking\.uri: .*/file cannot be a folder"):
        check_places(find_places(spec), spec)


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

"""What folders of results are called."""

from __future__ import annotations

import pytest

from orchestrator.experiment_file import build_experiment
from orchestrator.results_folder import data_name


@pytest.mark.parametrize(
    ("source", "path", "name"),
    [
        ("digits", None, "digits"),
        ("imagefolder", "/data/birds", "birds"),
        ("imagefolder", "/data/birds/v1.0/", "v1.0"),
        ("parquet", "/data/birds.parquet", "birds"),
        ("imagefolder", "s3://bucket/my%20birds?region=eu-north-1", "my birds"),
        ("imagefolder", "s3://key:secret@birds", "birds"),
        ("parquet", "s3://bucket/a/birds.parquet?endpoint_override=localhost", "birds"),
    ],
)
def test_images_are_called_by_the_last_part_of_their_place(
    source: str, path: str | None, name: str
) -> None:
    data = {"source": source} | ({} if path is None else {"path": path})
    values = {"name": "x", "objective": {"method": "ce"}, "data": data}
    assert data_name(build_experiment(values, where="test")) == name

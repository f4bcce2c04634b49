"""The cluster file, checked as `ray up` checks it before it calls the cloud."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).resolve().parents[1] / "ray_cluster.yaml"

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_the_launcher_accepts_the_file_and_would_refuse_an_unknown_key() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    values = yaml.safe_load(FILE.read_text())
    validate_config(prepare_config(values))
    with pytest.raises(ValidationError, match="head_node_typ"):
        validate_config(prepare_config(values | {"head_node_typ": "head"}))


def test_the_head_takes_no_work_and_workers_have_a_gpu_each() -> None:
    values = yaml.safe_load(FILE.read_text())
    types = values["available_node_types"]
    assert types[values["head_node_type"]]["resources"]["CPU"] == 0
    assert types["gpu_worker"]["resources"]["GPU"] == 1
    assert Path(FILE.parent, "constraints.txt").exists()

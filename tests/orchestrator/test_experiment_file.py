"""Reading experiment files: what is understood, and what a user is told when it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import UserError
from orchestrator.experiment_file import (
    build_experiment,
    changed,
    flatten,
    identity,
    identity_hash,
    load_experiment,
)

MINIMAL = "name: x\nteacher: {source: resnet8, checkpoint: teacher.pt}\n"


@pytest.fixture
def write(workplace: Path) -> Any:
    def write_text(text: str) -> Path:
        path = workplace / "experiment.yaml"
        path.write_text(text)
        return path

    return write_text


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "place", "found"),
    [
        ("objectiv: {}", "objectiv", "unknown key 'objectiv'; did you mean 'objective'?"),
        (
            "objective: {kd_wieght: 1}",
            "objective.kd_wieght",
            "unknown key 'kd_wieght'; did you mean 'kd_weight'?",
        ),
        ("train: {epoch: 3}", "train.epoch", "did you mean 'epochs'?"),
        ("tracking: {registr: m}", "tracking.registr", "did you mean 'register'?"),
        (
            "data: {normalize: {mean: [0], std: [1], stds: 1}}",
            "data.normalize.stds",
            "did you mean 'std'?",
        ),
        (
            "objective: {feature_layer: {studnt: a}}",
            "objective.feature_layer.studnt",
            "did you mean 'student'?",
        ),
        ("train: {zzz: 1}", "train.zzz", "known keys: epochs, batch_size, accumulate"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(
    write: Any, text: str, place: str, found: str
) -> None:
    path = write(MINIMAL + text)
    message = refused(path)
    assert message.startswith(f"{path}: {place}: ")
    assert found in message
    assert "\n" not in message


def test_an_unknown_key_of_the_teacher_and_its_fit_is_told(write: Any) -> None:
    path = write("name: x\nteacher: {source: resnet8, fit: {epoch: 3}}")
    assert refused(path) == (
        f"{path}: teacher.fit.epoch: unknown key 'epoch'; did you mean 'epochs'?"
    )
    path = write("name: x\nteacher: {sourc: resnet8, fit: {optimizer: {rl: 3}}}")
    assert f"{path}: teacher.sourc: unknown key 'sourc'; did you mean 'source'?" in refused(path)
    assert f"{path}: teacher.fit.optimizer.rl: unknown key 'rl'; did you mean 'lr'?" in refused(
        path
    )


@pytest.mark.parametrize(
    ("text", "place", "found"),
    [
        ("train: {epochs: three}", "train.epochs", "valid integer, found 'three'"),
        ("train: {epochs: 0}", "train.epochs", "greater than or equal to 1, found 0"),
        ("optimizer: {lr: fast}", "optimizer.lr", "valid number, found 'fast'"),
        ("data: {flip: 1}", "data.flip", "valid boolean, found 1"),
        ("data: {resize: big}", "data.resize", "found 'big'"),
        ("optimizer: {name: adam}", "optimizer.name", "did you mean 'adamw'?"),
        ("objective: {method: kdd}", "objective.method", "found 'kdd'; did you mean 'kd'?"),
        ("scaling: {cpus_per_worker: all}", "scaling.cpus_per_worker", "'auto'"),
        ("train: fast", "train", "mapping of keys to values, found 'fast'"),
        ("data:", "data", "mapping of keys to values, found None"),
        ("schedule: {milestones: 0.5}", "schedule.milestones", "found 0.5"),
        ("data: {normalize: 0.5}", "data.normalize", "found 0.5"),
        ("objective: {init_bias: zero}", "objective.init_bias", "found 'zero'"),
        ("objective: {feature_layer: 3}", "objective.feature_layer", "found 3"),
        ("student: {args: [1]}", "student.args", "found [1]"),
    ],
)
def test_a_wrong_value_is_told_in_one_line_with_what_was_found(
    write: Any, text: str, place: str, found: str
) -> None:
    path = write(MINIMAL + text)
    message = refused(path)
    assert message.startswith(f"{path}: {place}: ")
    assert found in message
    assert "\n" not in message
    assert "pydantic" not in message


def test_every_mistake_is_told_at_once(write: Any) -> None:
    path = write(MINIMAL + "train: {epochs: 0, batch: 3}\noptimizer: {lr: x}")
    lines = refused(path).splitlines()
    places = [line.removeprefix(f"{path}: ").partition(":")[0] for line in lines]
    assert sorted(places) == ["optimizer.lr", "train.batch", "train.epochs"]


def test_a_rule_between_sections_names_both(write: Any) -> None:
    path = write(MINIMAL + "train: {batch_size: 10}\nscaling: {workers: 3}")
    assert refused(path) == (
        f"{path}: train.batch_size 10 is not divisible by scaling.workers x train.accumulate = "
        "3 x 1: use 12"
    )


def test_a_missing_name_is_told(write: Any) -> None:
    path = write("objective: {method: ce}")
    assert refused(path) == f"{path}: name: is missing"


def test_an_ignored_weight_is_told_with_its_section(write: Any) -> None:
    path = write("name: x\nobjective: {method: ce, kd_weight: 1}")
    assert refused(path) == (
        f"{path}: objective: method 'ce' ignores kd_weight: drop it, or change the method"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "expected a mapping of sections, found None"),
        ("- a\n- b", "expected a mapping of sections, found ['a', 'b']"),
        ("name: [", "not valid YAML: line 1, column 8: while parsing a flow node, expected"),
        (
            "name: x\ndata: [1,\n b: 2",
            "while parsing a flow sequence (line 2), expected ',' or ']'",
        ),
        ("name: x\n\0", "not valid YAML: line 2: the character #x00 is not allowed"),
        ("name: x\nname: y", "the key 'name' appears twice"),
        (MINIMAL + "train: {epochs: 1, epochs: 2}", "the key 'epochs' appears twice"),
        ("name: 2001-99-99", "line 1, column 7: '2001-99-99' is no timestamp (month must be"),
        ("name: !!int x", "line 1, column 7: 'x' is no int ("),
        ("---\na: 1\n---\nb: 2", "line 3, column 1: expected a single document in the stream"),
        ("name: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_experiment_is_told(write: Any, text: str, found: str) -> None:
    path = write(text)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert found in message and "<unicode string>" not in message
    assert "\n" not in message


def test_a_missing_file_a_folder_and_bytes_are_told(workplace: Path) -> None:
    (workplace / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    assert refused(workplace / "no.yaml") == f"{workplace}/no.yaml: no such experiment file"
    assert "cannot be read" in refused(workplace)
    assert "cannot be read" in refused(workplace / "bytes.yaml")


def test_yaml_reads_numbers_as_people_write_them(write: Any) -> None:
    spec = load_experiment(write(MINIMAL + "optimizer: {lr: 1e-3, weight_decay: 5E-4}"))
    assert (spec.optimizer.lr, spec.optimizer.weight_decay) == (0.001, 0.0005)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", ".1e-2", "0.001", "1.0e-3", "+1e-3"])
def test_an_override_reads_floats_in_any_notation(write: Any, text: str) -> None:
    assert load_experiment(write(MINIMAL), [f"optimizer.lr={text}"]).optimizer.lr == 0.001


def test_overrides_take_lists_mappings_nothing_and_text_with_equal_signs(write: Any) -> None:
    spec = load_experiment(
        write(MINIMAL + "data: {limit: 5}"),
        [
            "data.limit=null",
            "schedule.milestones=[0.5, 8]",
            "data.normalize={mean: [0.5], std: [0.25]}",
            "student.args={a: {b: 1}}",
            "tracking.register=null",
            "tracking.uri=http://host/?a=b",
            "train.epochs=3",
            "train.epochs=4",
        ],
    )
    assert spec.data.limit is None
    assert spec.schedule.milestones == (0.5, 8.0)
    assert spec.data.normalize is not None
    assert spec.data.normalize.std == (0.25,)
    assert spec.student.args == {"a": {"b": 1}}
    assert spec.tracking.uri == "http://host/?a=b"
    assert spec.train.epochs == 4


def test_an_override_makes_the_sections_it_needs(write: Any) -> None:
    path = write("name: x\nteacher: {source: resnet8}\ntrain:\n")
    spec = load_experiment(path, ["teacher.fit.optimizer.lr=0.5", "train.epochs=2"])
    assert spec.teacher is not None
    assert spec.teacher.fit is not None
    assert (spec.teacher.fit.optimizer.lr, spec.train.epochs) == (0.5, 2)


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("train.epochs", "--set train.epochs: expected PATH=VALUE"),
        ("=3", "--set =3: expected PATH=VALUE"),
        ("name.first=3", "--set name.first=3: 'name' holds 'x', not a section"),
        ("train.epochs=[1", "--set train.epochs=[1: the value is not valid YAML"),
        ("train.epoch=3", "train.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        ("train.epochs=x", "train.epochs: should be a valid integer, found 'x'"),
    ],
)
def test_a_wrong_override_is_told(write: Any, override: str, found: str) -> None:
    assert found in refused(write(MINIMAL), override)


def test_relative_paths_are_those_of_the_working_directory_and_not_of_the_file(
    workplace: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = elsewhere / "e.yaml"
    file.write_text(
        "name: x\n"
        "data: {source: parquet, path: in/a.parquet, test_path: in/b.parquet}\n"
        "teacher: {source: resnet8, checkpoint: ../t.pt}\n"
        "student: {checkpoint: s.pt}\n"
        "storage: {path: runs}\n"
    )
    spec = load_experiment(file)
    assert spec.data.path == str(workplace / "in/a.parquet")
    assert spec.data.test_path == str(workplace / "in/b.parquet")
    assert spec.teacher is not None
    assert spec.teacher.checkpoint == str(workplace / "../t.pt")
    assert spec.student.checkpoint == str(workplace / "s.pt")
    assert spec.storage.path == str(workplace / "runs")


def test_the_paths_of_the_teachers_own_data_are_absolute_too(write: Any, workplace: Path) -> None:
    spec = load_experiment(
        write(
            "name: x\ndata: {source: imagefolder, path: few, test_path: t}\n"
            "teacher: {source: resnet8, fit: {data: {path: all, test_path: null}}}"
        )
    )
    assert spec.teacher is not None
    assert spec.teacher.fit is not None
    assert spec.teacher.fit.data == {"path": str(workplace / "all"), "test_path": None}


def test_uris_home_and_absolute_paths_stay_what_they_are(write: Any) -> None:
    spec = load_experiment(
        write(
            "name: x\ndata: {source: parquet, path: 's3://b/a', test_path: ~/b}\n"
            "teacher: {source: resnet8, checkpoint: /c.pt}"
        )
    )
    assert spec.data.path == "s3://b/a"
    assert spec.data.test_path == str(Path.home() / "b")
    assert spec.teacher is not None
    assert spec.teacher.checkpoint == "/c.pt"


FULL: dict[str, Any] = {
    "name": "full",
    "data": {
        "source": "parquet",
        "path": "/d",
        "test_fraction": 0.2,
        "resize": [16, 8],
        "normalize": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]},
        "labels_per_class": 3,
    },
    "teacher": {"source": "m:f", "args": {"a": [1]}, "fit": {"data": {"labels_per_class": None}}},
    "student": {"source": "resnet20"},
    "objective": {
        "contrast": "sigmoid",
        "init_bias": -2.5,
        "feature_layer": {"student": "a.b", "teacher": None},
    },
    "schedule": {"milestones": [1, 0.5]},
    "train": {"precision": "bf16"},
    "scaling": {"workers": 2, "cpus_per_worker": 3, "gpus_per_worker": 0.5, "batch_norm": "local"},
    "tracking": {"register": "best"},
    "storage": {"path": "/s"},
}
KINDS = [FULL, {"name": "ce", "objective": {"method": "ce"}}, yaml.safe_load(MINIMAL)]


@pytest.mark.parametrize("values", KINDS, ids=lambda v: v["name"])
def test_a_dumped_experiment_loads_equal(write: Any, values: dict[str, Any]) -> None:
    spec = build_experiment(values, where="test")
    dumped = json.loads(json.dumps(spec.model_dump(mode="json")))
    assert build_experiment(dumped, where="test") == spec
    assert load_experiment(write(yaml.safe_dump(dumped))) == spec
    assert changed(spec, {}) == spec


def test_changed_copies_and_validates(workplace: Path) -> None:
    spec = build_experiment(FULL, where="test")
    other = changed(spec, {"train.epochs": 7, "tracking.register": "other", "data.normalize": None})
    assert (other.train.epochs, other.tracking.register_as) == (7, "other")
    assert other.data.normalize is None
    assert (spec.train.epochs, spec.tracking.register_as) == (240, "best")
    with pytest.raises(UserError, match=r"train\.epochs: .*found 0"):
        changed(spec, {"train.epochs": 0})


def test_flatten_names_every_leaf_by_its_dotted_path() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": {}, "g": None}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [1, {"e": 2}], "f": {}, "g": None}


@pytest.mark.parametrize(
    "placement",
    [
        {"tracking.uri": "http://x"},
        {"tracking.enabled": False},
        {"tracking.register": "m"},
        {"tracking.experiment": "e"},
        {"storage.path": "/elsewhere"},
        {"storage.keep": 9},
        {"scaling.cpus_per_worker": 1},
        {"scaling.gpus_per_worker": 0},
        {"scaling.wait_s": 1.0},
        {"scaling.max_failures": 0},
        {"scaling.workers": 0},
        {"scaling.workers": 4},
        {"scaling.workers": 4, "scaling.batch_norm": "sync"},
        {"scaling.batch_norm": "local"},
    ],
    ids=str,
)
def test_where_a_run_happens_is_no_part_of_what_it_is(placement: dict[str, Any]) -> None:
    spec = build_experiment(yaml.safe_load(MINIMAL), where="test")
    assert identity(changed(spec, placement)) == identity(spec)
    assert identity_hash(changed(spec, placement)) == identity_hash(spec)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "y"},
        {"seed": 1},
        {"data.seed": 1},
        {"data.test_fraction": 0.2},
        {"teacher.checkpoint": "/other.pt"},
        {"teacher.min_top1": 0.0},
        {"student.args": {"a": 1}},
        {"objective.kd_temperature": 2.0},
        {"optimizer.lr": 0.1},
        {"schedule.gamma": 0.5},
        {"train.accumulate": 2},
        {"train.precision": "bf16"},
    ],
    ids=str,
)
def test_whatever_is_computed_is_part_of_what_a_run_is(change: dict[str, Any]) -> None:
    spec = build_experiment(yaml.safe_load(MINIMAL), where="test")
    assert identity_hash(changed(spec, change)) != identity_hash(spec)


def test_workers_count_only_where_each_has_batch_norm_of_its_own() -> None:
    spec = build_experiment(yaml.safe_load(MINIMAL), where="test")
    local = {
        workers: identity_hash(
            changed(spec, {"scaling.workers": workers, "scaling.batch_norm": "local"})
        )
        for workers in (0, 1, 2, 4)
    }
    assert local[0] == local[1] == identity_hash(spec)
    assert len({local[1], local[2], local[4]}) == 3

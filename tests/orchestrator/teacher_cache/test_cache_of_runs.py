"""The teacher cache as a user meets it: runs that use it, `dcd cache`, and what is told apart."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import Ended, dcd, experiment, listing, refuse  # noqa: F401  (fixtures)
from tiny_experiment import recorded, run_quietly, save_teacher, tiny_experiment

from orchestrator.distillation import Outcome
from orchestrator.experiment_file import identity
from orchestrator.journal import Journal
from orchestrator.places import cache_place
from orchestrator.spec import TeacherCacheSpec


def cached_percent(outcome: Outcome) -> list[float]:
    """How much of the teacher was read, by epoch."""
    points = Journal(outcome.folder).points()
    return [p.value for p in points if p.name == "time/teacher_cached_percent"]


def run(teacher_file: Path, name: str, updates: Mapping[str, Any] | None = None) -> Outcome:
    return run_quietly(tiny_experiment(teacher_file, {"name": name, **(updates or {})}))


@pytest.mark.parametrize(
    "settings",
    [{}, {"train.accumulate": 2}, {"objective.method": "kd"}, {"objective.method": "dcd"}],
    ids=str,
)
def test_a_cached_run_records_what_a_live_one_does(
    workplace: Path, teacher_file: Path, settings: dict[str, Any]
) -> None:
    live = run(teacher_file, "live", settings)
    first = run(teacher_file, "first", {**settings, "teacher_cache": "on"})
    second = run(teacher_file, "second", {**settings, "teacher_cache": "on"})
    assert recorded(live.folder) == recorded(first.folder) == recorded(second.folder)
    assert cached_percent(live) == []
    assert cached_percent(first) == [0, 0]
    assert cached_percent(second) == [100, 100]


def test_a_fitted_teacher_is_cached_too(workplace: Path) -> None:
    fit = {
        "teacher.checkpoint": None,
        "teacher.args": {"width": 16},
        "teacher.fit": {"epochs": 1, "batch_size": 20, "optimizer": {"lr": 0.3}},
        "teacher_cache": "on",
    }
    first, second = run(Path(), "first", fit), run(Path(), "second", fit)
    assert recorded(first.folder) == recorded(second.folder)
    assert cached_percent(second) == [100, 100]


def test_seeds_and_loss_settings_share_the_answers(workplace: Path, teacher_file: Path) -> None:
    run(teacher_file, "first", {"teacher_cache": "on"})
    for number, settings in enumerate(
        [{"seed": 7}, {"objective.kd_weight": 2.0}, {"optimizer.lr": 0.1}, {"train.epochs": 1}]
    ):
        other = run(teacher_file, f"other-{number}", {"teacher_cache": "on", **settings})
        assert set(cached_percent(other)) == {100}, settings


@pytest.mark.parametrize(
    "change",
    [
        {"teacher.checkpoint": "other"},
        {"teacher.source": "tiny_networks:relu_network"},
        {"teacher.precision": "bf16"},
        {"teacher.normalize": {"mean": [0.3], "std": [0.3]}},
        {"objective.feature_layer": {"teacher": "conv"}},
        {"data.seed": 1},
        {"data.split_seed": 1},
        {"data.limit": 40},
        {"data.augment": "none"},
        {"data.crop_padding": 2},
        {"data.flip": False},
        {"data.resize": 12},
        {"teacher_cache.dtype": "bf16"},
    ],
    ids=str,
)
def test_nothing_is_read_that_was_computed_otherwise(
    workplace: Path, teacher_file: Path, change: dict[str, Any]
) -> None:
    run(teacher_file, "first", {"teacher_cache.mode": "on"})
    if "teacher.checkpoint" in change:
        change = {"teacher.checkpoint": str(save_teacher(workplace, seed=1))}
    other = run(teacher_file, "other", {"teacher_cache.mode": "on", **change})
    # Without augmentation, all epochs are alike.
    expected = [0, 100] if change == {"data.augment": "none"} else [0, 0]
    assert cached_percent(other) == expected


@pytest.mark.parametrize(
    ("change", "percent"),
    [
        ({"data.crop_padding": 2}, 100),  # has no part in it
        ({"data.crop_size": 7}, 0),
        ({"data.flip": False}, 0),
        ({"data.seed": 1}, 0),
        ({"data.augment": "crop_flip"}, 0),
    ],
    ids=str,
)
def test_settings_of_the_imagenet_augmentation_tell_answers_apart(
    workplace: Path, teacher_file: Path, change: dict[str, Any], percent: int
) -> None:
    base = {"teacher_cache.mode": "on", "data.augment": "imagenet", "data.crop_size": 8}
    run(teacher_file, "first", base)
    assert set(cached_percent(run(teacher_file, "other", {**base, **change}))) == {percent}


@pytest.mark.parametrize(
    ("section", "alone", "one_of_many"),
    [
        ({}, False, True),
        ("auto", False, True),
        ("off", False, False),
        (False, False, False),
        ("on", True, True),
        (True, True, True),
        ("/some/place", True, True),
        ({"path": "s3://bucket/place"}, True, True),
        ({"path": "/some/place", "mode": "off"}, False, False),
        ({"path": "/some/place", "mode": False}, False, False),
        ({"views": 3}, True, True),
        ({"max_gib": 3}, False, True),
    ],
)
def test_the_mode_decides_which_runs_use_it(section: Any, alone: bool, one_of_many: bool) -> None:
    spec = TeacherCacheSpec.model_validate(section)
    assert spec.is_on(one_of_many=False) is alone
    assert spec.is_on(one_of_many=True) is one_of_many


def test_the_place_is_beside_the_runs_unless_it_is_given(
    workplace: Path, teacher_file: Path
) -> None:
    def place(**section: Any) -> Any:
        spec = tiny_experiment(teacher_file, {"teacher_cache": section})
        return cache_place(spec, one_of_many=True)

    assert place() == (str(workplace / "dcd_teacher_cache"), None)
    assert place(path="here") == (str(workplace / "here"), None)
    assert place(path="s3://a/b", max_gib=0.5) == ("s3://a/b", 2**29)
    without = tiny_experiment(teacher_file, {"objective.method": "ce", "teacher": None})
    assert cache_place(without, one_of_many=True) is None


def test_where_the_answers_are_kept_is_no_part_of_what_a_run_is(
    workplace: Path, teacher_file: Path
) -> None:
    def of(**section: Any) -> dict[str, Any]:
        return identity(tiny_experiment(teacher_file, {"teacher_cache": section}))

    assert of() == of(mode="on") == of(path="/else/where", max_gib=3)
    assert of() != of(views=2)
    assert of() != of(dtype="bf16")


def test_a_cache_that_is_full_stays_within_its_budget(workplace: Path, teacher_file: Path) -> None:
    live = run(teacher_file, "live", {"train.epochs": 4})
    small = run(
        teacher_file,
        "small",
        {"train.epochs": 4, "teacher_cache.mode": "on", "teacher_cache.max_gib": 1e-5},
    )
    assert recorded(live.folder) == recorded(small.folder)
    kept = list((workplace / "dcd_teacher_cache").rglob("*.arrow"))
    assert 1 <= len(kept) < 4
    assert sum(path.stat().st_size for path in kept) <= 1e-5 * 2**30


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("teacher_cache=[1]", "teacher_cache: "),
        ("teacher_cache.mode=sometimes", "teacher_cache.mode: "),
        ("teacher_cache.views=0", "teacher_cache.views: "),
        ("teacher_cache.max_gib=0", "teacher_cache.max_gib: "),
        ("teacher_cache.dtype=int8", "teacher_cache.dtype: "),
        ("teacher_cache.size=3", "unknown key 'size'"),
        ("teacher_cache=nowhere://bucket", "nowhere://bucket: not a URI that pyarrow opens"),
        ("teacher_cache=/proc/cache", "teacher_cache.path: /proc/cache is not writable"),
        ("teacher_cache=./e.yaml", "e.yaml is a file"),
        ("teacher_cache=of", "'of' is none of auto, on and off, nor a folder with a slash"),
    ],
)
def test_a_wrong_section_is_refused(
    dcd: Callable[..., Ended],  # noqa: F811
    experiment: Callable[..., Path],  # noqa: F811
    section: str,
    expected: str,
) -> None:
    assert expected in refuse(dcd, experiment(), section)


def test_warm_list_use_and_prune(
    dcd: Callable[..., Ended],  # noqa: F811
    experiment: Callable[..., Path],  # noqa: F811
    workplace: Path,
    teacher_file: Path,
) -> None:
    assert dcd("cache", "ls").out == f"nothing in {workplace}/dcd_teacher_cache\n"
    warmed = dcd("cache", "warm", str(experiment()))
    assert warmed.code == 0
    assert warmed.out == f"the answers of 2 epochs are in {workplace}/dcd_teacher_cache\n"
    used = run(teacher_file, "used", {"teacher_cache": "on", "train.epochs": 3})
    assert cached_percent(used) == [100, 100, 0]
    run(teacher_file, "other", {"teacher_cache": "on", "data.seed": 1, "train.epochs": 1})
    out = dcd("cache", "ls").out.splitlines()
    assert out[0].split()[:2] == ["key", "teacher"]
    other, first = (line.split() for line in out[1:3])
    assert first[1] == "tiny_networks:network"
    assert (first[5:8], other[5:8]) == (["0", "fp32", "1-3"], ["1", "fp32", "1"])
    assert out[3].endswith(f"MiB in {workplace}/dcd_teacher_cache")

    before = listing(workplace)
    assert dcd("cache", "prune").code == 2
    assert "no 'feedface' in" in dcd("cache", "prune", "feedface").sentence
    assert dcd("cache", "prune", "--older-than", "1").out.startswith("removed 0 of 2 teachers'")
    assert listing(workplace) == before
    marker = workplace / "dcd_teacher_cache" / first[0] / "used"
    os.utime(marker, (time.time() - 2 * 86400,) * 2)
    assert "2 days ago" in dcd("cache", "ls").out
    assert dcd("cache", "prune", "--older-than", "1").out.startswith("removed 1 of 2 teachers'")
    assert first[0] not in dcd("cache", "ls").out
    assert dcd("cache", "prune", other[0]).out.startswith("removed 1 of 1 teachers'")
    assert dcd("cache", "ls").out.startswith("nothing in")


def test_prune_by_size_keeps_what_was_used_last(
    dcd: Callable[..., Ended],  # noqa: F811
    workplace: Path,
    teacher_file: Path,
) -> None:
    for seed in range(3):
        run(teacher_file, f"run-{seed}", {"teacher_cache": "on", "data.seed": seed})
    pieces = list((workplace / "dcd_teacher_cache").rglob("*.arrow"))
    room = 2.5 / 3 * sum(path.stat().st_size for path in pieces) / 2**30
    assert dcd("cache", "prune", "--max-gib", str(room)).out.startswith("removed 1 of 3")
    rows = dcd("cache", "ls").out.splitlines()[1:-1]
    assert sorted(line.split()[5] for line in rows) == ["1", "2"]
    (workplace / "dcd_teacher_cache" / "notes.txt").write_text("of somebody else")
    (workplace / "dcd_teacher_cache" / ("a" * 16)).mkdir()
    damaged = workplace / "dcd_teacher_cache" / ("b" * 16)
    damaged.mkdir()
    (damaged / "about.json").write_text("{")
    assert "? ?" in dcd("cache", "ls").out
    assert dcd("cache", "prune", "--all").out.startswith("removed 3 of 3")
    left = sorted(path.name for path in (workplace / "dcd_teacher_cache").iterdir())
    assert left == ["a" * 16, "notes.txt"]  # not ours


def test_warm_says_what_it_cannot_do(
    dcd: Callable[..., Ended],  # noqa: F811
    experiment: Callable[..., Path],  # noqa: F811
) -> None:
    file = str(experiment())
    off = dcd("cache", "warm", file, "--set", "teacher_cache=off")
    assert (off.code, "it is off" in off.sentence) == (2, True)
    none = dcd("cache", "warm", file, "--set", "teacher=null", "--set", "objective.method=ce")
    assert (none.code, "there is none" in none.sentence) == (2, True)
    small = dcd("cache", "warm", file, "--epochs", "9", "--set", "teacher_cache.max_gib=0.00001")
    assert small.code == 1
    assert "no room for more (teacher_cache.max_gib)" in small.sentence
    assert dcd("cache", "ls", "--path", file).code == 2


def test_warm_computes_what_differs(
    dcd: Callable[..., Ended],  # noqa: F811
    experiment: Callable[..., Path],  # noqa: F811
) -> None:
    plain = dcd("cache", "warm", str(experiment({"data.augment": "none"})))
    assert plain.out.startswith("the answers of 1 epoch are in")
    assert "all epochs are alike without augmentation" in plain.out
    views = dcd("cache", "warm", str(experiment({"train.epochs": 9, "teacher_cache.views": 3})))
    assert views.out.startswith("the answers of 3 epochs are in")


def test_a_word_in_the_file_and_a_field_on_the_command_line_go_together(
    dcd: Callable[..., Ended],  # noqa: F811
    experiment: Callable[..., Path],  # noqa: F811
    workplace: Path,
) -> None:
    file = experiment({"teacher_cache": "on"})
    assert dcd("distill", str(file), "--set", "teacher_cache.views=1").code == 0
    assert [path.name for path in (workplace / "dcd_teacher_cache").glob("*/0*")] == ["00001"]


def test_warm_prepares_for_several_workers(
    dcd: Callable[..., Ended],  # noqa: F811
    experiment: Callable[..., Path],  # noqa: F811
    workplace: Path,
    teacher_file: Path,
) -> None:
    assert dcd("cache", "warm", str(experiment()), "--set", "scaling.workers=2").code == 0
    used = run(teacher_file, "used", {"teacher_cache": "on"})
    assert cached_percent(used) == [100, 100]

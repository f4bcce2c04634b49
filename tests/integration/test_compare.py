"""`dcd compare` as a user types it: paired, killed, resumed, grown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import digits
import pytest
from test_search import (
    content,
    ended,
    going,
    kill_driver,
    mlflow_runs,
    prepare,
    role,
    state,
    trials,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.mlflow,
    pytest.mark.slow,
]


def computed(runs: Iterable[Path]) -> dict[int, float]:
    """How often the teacher was run on an epoch's images, in all of some runs together."""
    times: dict[int, float] = {}
    for run in runs:
        for point in digits.points(run):
            if point.name == "time/teacher_cached_percent":
                times[point.step] = times.get(point.step, 0.0) + 1 - point.value / 100
    return times


def test_a_comparison_has_intervals_and_grows_by_seeds(workplace: Path, teacher: Path) -> None:
    prepare(workplace, teacher)
    arguments = ["compare", "run.yaml", "--arms", "ce,kd", "--arm", "same=objective.method=ce"]
    output = digits.run(workplace, *arguments, "--seeds", "2")
    folder = workplace / "dcd_runs" / "run-comparison"
    scores = json.loads((folder / "scores.json").read_text())
    assert list(scores) == ["ce", "kd", "same"]
    assert sorted(scores["kd"]["test/top1"]) == ["0", "1"]
    for seed in (0, 1):
        # Equal settings and seeds give the very same run, whatever else runs beside it.
        own, same = (trials(folder)[f"{arm}-seed-{seed}"] for arm in ("ce", "same"))
        assert digits.epochs(own) == digits.epochs(same)
        result = json.loads((own / "result.json").read_text())
        assert scores["ce"]["test/top1"][str(seed)] == result["test/top1"]
    assert "95 % interval" in output
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    before = {name: content(path / "journal") for name, path in trials(folder).items()}
    digits.run(workplace, *arguments, "--seeds", "3")
    now = {name: content(path / "journal") for name, path in trials(folder).items()}
    assert len(now) == 9 and {name: now[name] for name in before} == before
    # The teacher was paid for once by all seeds, those of the second session too.
    kd = [path for name, path in trials(folder).items() if name.startswith("kd")]
    assert computed(kd) == dict.fromkeys(computed(kd), pytest.approx(1.0))
    assert len(computed(kd)) == max(digits.epochs(kd[0]))
    client, runs = mlflow_runs(workplace)
    (parent,) = role(runs, "comparison").values()
    arms = role(runs, "arm")
    assert len(arms) == 9
    assert {run.data.tags["mlflow.parentRunId"] for run in arms.values()} == {parent.info.run_id}
    for arm in scores:
        results = [
            json.loads((trials(folder)[f"{arm}-seed-{seed}"] / "result.json").read_text())
            for seed in range(3)
        ]
        mean = sum(result["test/top1"] for result in results) / 3
        assert parent.data.metrics[f"mean/test/top1/{arm}"] == pytest.approx(mean)
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"comparison.png", "report.md", "scores.json", "arms.yaml"} <= artifacts


def test_all_arms_start_from_one_student_and_see_the_same_images_also_after_a_kill(
    workplace: Path, teacher: Path
) -> None:
    # With this learning rate weights stay as they start, to the last bit, while the statistics of
    # BatchNorm, and so the scores, depend on the order and augmentation of the images.
    prepare(workplace, teacher, updates={"train.epochs": 30, "optimizer.lr": 1e-30})
    folder = workplace / "dcd_runs" / "run-comparison"
    process = digits.start(
        workplace, "compare", "run.yaml", "--arms", "ce,kd,dcd+kd", "--seeds", "2"
    )
    digits.wait_until(
        lambda: ended(folder) and going(folder, epochs=3), what="ended run beside a running one"
    )
    kill_driver(process)
    before = {name: content(path / "journal") for name, path in trials(folder).items()}
    digits.run(workplace, "compare", "--resume", "run-comparison")

    arms = ("ce", "kd", "dcd-kd")
    assert set(trials(folder)) == {f"{arm}-seed-{seed}" for arm in arms for seed in (0, 1)}
    for name, files in before.items():
        now = content(folder / "trials" / name / "journal")
        assert {key: now[key] for key in files} == files
    curves = {name: digits.epochs(path) for name, path in trials(folder).items()}
    for name, path in trials(folder).items():
        assert state(path) == "finished"
        assert sorted(curves[name]) == list(range(31))
    # An epoch that was computed before the kill and not told of is computed by nobody that tells.
    times = computed(trials(folder).values())
    assert len(times) == 30 and max(times.values()) <= 1.0
    for epoch in range(1, 31):
        for metric in ("train/ce", "val/loss"):
            zero, one = (
                {curves[f"{arm}-seed-{seed}"][epoch][metric] for arm in arms} for seed in (0, 1)
            )
            assert len(zero) == len(one) == 1, (epoch, metric)
            assert zero != one
    _, runs = mlflow_runs(workplace)
    (parent,) = role(runs, "comparison").values()
    children = role(runs, "arm")
    assert len(children) == 6
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert {run.data.tags["dcd.arm"] for run in children.values()} == {"ce", "kd", "dcd+kd"}

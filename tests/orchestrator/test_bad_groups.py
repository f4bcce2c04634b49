"""Wrong `dcd search`, `compare` and `plan --space` as typed: a sentence, exit code 2, nothing
written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_bad_input import dcd, experiment, listing  # noqa: F401  (fixtures)

SPACES: dict[str, dict[str, Any]] = {
    "bias": {"objective.init_bias": {"uniform": [-8.0, 0.0]}},
    "unknown": {"objective.kd_wieght": {"uniform": [0.0, 2.0]}},
    "range": {"objective.kd_weight": {"uniform": [-1.0, 2.0]}},
    "shared": {"data.limit": {"choice": [10, 20]}},
    "corner": {"objective.init_temperature": {"loguniform": [0.05, 1.0]}},
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("search", "give a search space and an experiment file, or --resume NAME"),
        ("search dcd", "give an experiment file too"),
        ("search dcdd e.yaml", "no search space 'dcdd'; did you mean 'dcd'?"),
        ("search bias.yaml e.yaml", "searches the bias under softmax only"),
        ("search unknown.yaml e.yaml", "did you mean 'objective.kd_weight'?"),
        ("search range.yaml e.yaml", "-1.0 does not suit the setting"),
        ("search shared.yaml e.yaml", "data.limit cannot be searched: all trials share the images"),
        ("search corner.yaml e.yaml", "with objective.init_temperature = 0.05: objective: init_t"),
        ("search dcd e.yaml --set objective.method=ce", "dcd: nothing to search"),
        ("search dcd_fine e.yaml", "is searched around a run: give --around RUN"),
        ("search dcd_fine e.yaml --around x", "no run 'x' in"),
        ("search dcd e.yaml --around x", "--around: dcd is searched as it is"),
        ("search pbt_schedule e.yaml --trials 3", "--trials: population based training"),
        ("search dcd e.yaml --register x --final-seeds 0", "--register registers a final run"),
        ("search dcd e.yaml --register x", "--register needs MLflow"),
        ("search --resume x", "no search 'x' in"),
        ("search dcd e.yaml --resume x", "--resume takes the search as it is: drop SPACE, FILE"),
        (f"search dcd e.yaml --name {'x' * 90}", "80 characters at most"),
        ("compare e.yaml", "a comparison needs at least two arms"),
        ("compare e.yaml --arms ce,kdd", "--arms: no method 'kdd'; did you mean 'kd'"),
        ("compare e.yaml --arms ce,kd --reference c", "--reference: no arm 'c'"),
        ("compare e.yaml --arms ce,kd --metric val/top2", "--metric: no metric 'val/top2'"),
        ("compare e.yaml --arms ce --arm x=objective.a=1", "arm 'x': objective.a: unknown key 'a'"),
        ("compare --resume x", "no comparison 'x' in"),
        ("compare --resume x --arms ce", "--resume takes the comparison as it is"),
        ("plan e.yaml --trials 3", "give --space SPACE too"),
        ("plan e.yaml --space dcdd", "no search space 'dcdd'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    dcd: Any,  # noqa: F811
    experiment: Any,  # noqa: F811
    arguments: str,
    expected: str,
) -> None:
    experiment()
    for name, parameters in SPACES.items():
        values = {"title": "t", "description": "d", "trials": 4, "parameters": parameters}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(values))
    before = listing(Path.cwd())
    ended = dcd(*arguments.split())
    assert ended.code == 2
    assert expected in ended.sentence
    assert ended.out == ""
    assert listing(Path.cwd()) == before


def test_the_plan_of_a_search_tells_trials_rungs_and_how_many_at_once(
    dcd: Any,  # noqa: F811
    experiment: Any,  # noqa: F811
) -> None:
    experiment({"train.epochs": 30, "scaling.workers": 1, "scaling.cpus_per_worker": 1})
    ended = dcd("plan", "e.yaml", "--space", "dcd", "--trials", "16", "--epochs", "9")
    assert ended.code == 0
    for text in (
        "trials     16 by tpe, early stopping: asha",
        "compared   after epochs 1, 3",
        "budget     9 epochs each",
        "objective.init_bias: uniform [-8.0, 0.0] when objective.contrast is sigmoid",
        "trials train for 9 of 30 epochs",
        "at once    ",
    ):
        assert text in ended.out, text

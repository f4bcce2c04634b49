"""Wrong `dcd search`, `compare` and `plan --space` as typed: a sentence, exit code 2, nothing
written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_bad_input import dcd, experiment, listing  # noqa: F401  (fixtures)

from orchestrator.comparison.request import Request as Comparison
from orchestrator.comparison.request import open_comparison, parse_arms
from orchestrator.experiment_file import load_experiment
from orchestrator.search.plan import read_space
from orchestrator.search.request import Request, open_search
from orchestrator.storage import Folder
from orchestrator.trials.group import write_group

SPACES: dict[str, dict[str, Any]] = {
    "bias": {"objective.init_bias": {"uniform": [-8.0, 0.0]}},
    "unknown": {"objective.kd_wieght": {"uniform": [0.0, 2.0]}},
    "range": {"objective.kd_weight": {"uniform": [-1.0, 2.0]}},
    "shared": {"data.limit": {"choice": [10, 20]}},
    "corner": {"objective.init_temperature": {"loguniform": [0.05, 1.0]}},
    "seed": {"seed": {"randint": [0, 9]}},
    "teacher": {"teacher.source": {"choice": ["resnet8", "resnet14"]}},
    "scaling": {"scaling.workers": {"choice": [1, 2]}},
    "gamma": {"schedule.gamma": {"uniform": [0.1, 0.5]}},
    "good": {"optimizer.lr": {"loguniform": [0.01, 0.1]}},
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
        ("search none.yaml e.yaml", "none.yaml: no such file"),
        ("search seed.yaml e.yaml", "seed cannot be searched: compare settings over several seeds"),
        ("search teacher.yaml e.yaml", "teacher.source cannot be searched: all trials share"),
        ("search scaling.yaml e.yaml", "scaling.workers cannot be searched: it does not change"),
        ("search grid.yaml e.yaml --trials 3", "--trials: a grid search tries every point"),
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
        ("search dcd e.yaml --name ..", "--name '..': use letters, digits"),
        ("search dcd e.yaml --name a/b", "--name 'a/b': use letters, digits"),
        ("search dcd e.yaml --name ä", "--name 'ä': use letters, digits"),
        ("compare e.yaml --arms ce,kd --name .", "--name '.': use letters, digits"),
        ("search dcd e.yaml --storage . --name mine", "mine is no run and holds 'kept.txt'"),
        ("compare e.yaml --arms ce,kd --storage . --name mine", "is no run and holds 'kept.txt'"),
        ("distill e.yaml --storage . --set name=mine", "mine is no run and holds 'kept.txt'"),
        ("search dcd e.yaml --register a/b", "--register 'a/b': MLflow takes no name"),
        (
            "compare e.yaml --arms ce,at --set objective.hint_layers=conv",
            "what belongs to one arm is given with it, as in --arm",
        ),
        ("search e.yaml dcd", "dcd is a search space: its name comes first, then the experiment"),
        ("compare e.yaml --arm objective.kd_weight=1", "expected NAME='PATH=VALUE ...'"),
        (
            "search dcd e.yaml --set tracking.enabled=true --set tracking.uri=sqlite:////proc/x.db",
            "tracking.uri: /proc is not writable",
        ),
        ("compare e.yaml", "a comparison needs at least two arms"),
        ("compare e.yaml --arms ce", "a comparison needs at least two arms"),
        ("compare e.yaml --arms ce,ce", "the arm 'ce' is given twice"),
        ("compare e.yaml --arms ce,kd --arm kd=seed=1", "the arm 'kd' is given twice"),
        ("compare e.yaml --arms ce --arm x=seed=1", "--arm x: seed is the same for all arms"),
        ("compare e.yaml --arms ce,kdd", "--arms: no method 'kdd'; did you mean 'kd'"),
        ("compare e.yaml --arms ce,kd --reference c", "--reference: no arm 'c'"),
        ("compare e.yaml --arms ce,kd --metric val/top2", "--metric: no metric 'val/top2'"),
        ("compare e.yaml --arms ce --arm x=objective.a=1", "arm 'x': objective.a: unknown key 'a'"),
        (
            "compare e.yaml --arms ce,kd --arm x=data.split_seed=5 --metric val/top1",
            "arm 'x' is scored on other val images than arm 'ce'",
        ),
        (
            "search pbt_schedule e.yaml --set objective.schedule=[{epoch: 2, kd_weight: 0.5}]",
            "the experiment has one: drop objective.schedule",
        ),
        ("search gamma.yaml e.yaml --set schedule.kind=cosine", "the trials' schedule is cosine"),
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
    grid = {"title": "t", "description": "d", "searcher": "grid"}
    grid["parameters"] = {"optimizer.lr": {"grid": [0.01, 0.1]}}
    Path("grid.yaml").write_text(yaml.safe_dump(grid))
    Path("mine").mkdir()
    Path("mine/kept.txt").write_text("mine")
    before = listing(Path.cwd())
    # A space within brackets is none between arguments.
    ended = dcd(*re.split(r" (?![^\[]*\])", arguments))
    assert ended.code == 2
    assert expected in ended.sentence
    assert ended.out == ""
    assert listing(Path.cwd()) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("search good.yaml e.yaml --name s --seed 1", "seed: 0 -> 1"),
        ("search good.yaml e.yaml --name s --set optimizer.momentum=0.5", "momentum: 0.9 -> 0.5"),
        ("search wider.yaml e.yaml --name s", "exists with other settings; changed:"),
        ("search good.yaml e.yaml --name r", "'r' is a single run in"),
        ("compare e.yaml --arms ce,kd --name s", "'s' is a search, not a comparison"),
        ("compare --resume s", "no comparison 's' in"),
        ("search --resume s --epochs 3 --name t", "drop --epochs, --name"),
        ("search --resume s --trials 2", "--trials 2: s has 3 trials already: give more"),
        ("compare --resume c --seeds 3", "--seeds 3: c has 5 seeds already: give more"),
        ("compare e.yaml --arms ce,kd --name c --seeds 3", "--seeds 3: c has 5 seeds already"),
    ],
)
def test_a_name_that_something_else_has_is_left_alone(
    dcd: Any,  # noqa: F811
    experiment: Any,  # noqa: F811
    arguments: str,
    expected: str,
) -> None:
    experiment()
    for name, high in (("good", 0.1), ("wider", 0.5)):
        values = {"title": "t", "description": "d", "trials": 4}
        values |= {"parameters": {"optimizer.lr": {"loguniform": [0.01, high]}}}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(values))
    request = Request(load_experiment(Path("e.yaml")), read_space("good.yaml"), "good")
    write_group(open_search(request, name="s"))
    for number in range(1, 4):
        (Folder("dcd_runs") / "s" / "trials").write(f"000{number}/trial.json", "{}")
    arms = parse_arms("ce,kd", [])
    asked = Comparison(request.experiment, arms, "ce", seeds=5, metric="test/top1", vary_data=False)
    write_group(open_comparison(asked, name="c"))
    (Folder("dcd_runs") / "r").write("spec.json", "{}")
    before = listing(Path.cwd())
    ended = dcd(*arguments.split())
    assert ended.code == 2
    assert expected in ended.sentence
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
        "trials train for 9 epochs and the final runs for the experiment's 30",
        "at once    ",
    ):
        assert text in ended.out, text

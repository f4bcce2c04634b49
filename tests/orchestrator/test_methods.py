"""Methods beside DCD, from the word in the experiment to the trained student."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from tiny_experiment import recorded, run_quietly, tiny_experiment

from dcd_core import build_model
from dcd_core.objectives import METHODS, hyperparameters
from orchestrator.checkpoints import Checkpoints
from orchestrator.comparison.request import parse_arms
from orchestrator.errors import UserError
from orchestrator.experiment_file import changed, flatten
from orchestrator.places import cache_place
from orchestrator.plan import describe_plan
from orchestrator.spec import Experiment, ObjectiveSpec, method_names
from search_spaces import Space, corner_points, inert_parameters, load_space

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = list(METHODS)
WITH_HINTS = [name for name, method in METHODS.items() if method.hints != "none"]
SMALL: dict[str, dict[str, Any]] = {
    "crd": {"num_negatives": 64},
    "rrd": {"queue_size": 64},
    "dkd": {"warmup_epochs": 0},
}


@pytest.fixture(autouse=True)
def _in_a_workplace(workplace: Path) -> None:
    pass


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random resnet14 for grey digits."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "resnet14.pt"
    torch.save(build_model("resnet14", num_classes=10, in_channels=1).state_dict(), path)
    return path


def resnets(checkpoint: Path, updates: dict[str, Any]) -> Experiment:
    """The tiny experiment with networks that have stages."""
    networks = {
        "teacher.source": "resnet14",
        "teacher.args": {},
        "student.source": "resnet8",
        "data.resize": 16,
    }
    return tiny_experiment(checkpoint, {**networks, **updates})


def objective(**values: Any) -> ObjectiveSpec:
    return ObjectiveSpec.model_validate(values)


# The experiment


@pytest.mark.parametrize("name", NAMES)
def test_a_method_brings_its_weight_and_may_have_kd_beside_it(name: str) -> None:
    alone, with_kd = objective(method=name), objective(method=f"{name}+kd")
    for spec, kd_weight in ((alone, 0), (with_kd, 1)):
        assert (spec.ce_weight, spec.kd_weight, spec.dcd_weight) == (1, kd_weight, 0)
        assert spec.method_weight == METHODS[name].weight
        assert spec.uses_method
        assert not spec.uses_dcd
    assert objective(method=name, method_weight=0.25).method_weight == 0.25


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "kd", "method_weight": 2}, "method 'kd' ignores method_weight: drop it"),
        ({"method": "dcd", "method_weight": 2}, "method 'dcd' ignores method_weight: drop it"),
        ({"method": "rkd", "dcd_weight": 2}, "method 'rkd' ignores dcd_weight: drop it"),
        ({"method": "rkd", "kd_weight": 2}, "method 'rkd' ignores kd_weight: drop it"),
        ({"method": "kd", "method_args": {"gamma": 1}}, "method_args: method 'kd' takes none"),
        (
            {"method": "cc+kd", "method_args": {"gama": 1}},
            "method_args: CC has no hyperparameter 'gama': did you mean 'gamma'?",
        ),
        (
            {"method": "cc", "method_args": {"gamma": -1}},
            "method_args: gamma must be a number above 0, not -1",
        ),
        (
            {"method": "rkd", "hint_layers": "conv"},
            "hint_layers: method 'rkd' compares no intermediate features: drop them",
        ),
        (
            {"method": "at", "hint_layers": {"student": ["a", "b"], "teacher": "a"}},
            "student names 2 layers and teacher 1",
        ),
        (
            {"method": "rkd", "ce_weight": 0, "method_weight": 0},
            "all weights are 0: nothing would be learned",
        ),
        (
            {"method": "dcd", "schedule": [{"epoch": 2, "method_weight": 3}]},
            "gives method_weight, which method 'dcd' ignores",
        ),
    ],
)
def test_what_a_method_does_not_take_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        objective(**values)


def test_a_misspelt_method_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"objective\.method: .*found 'crdd'; did you mean 'crd'\?"):
        tiny_experiment("x", {"objective.method": "crdd"})
    with pytest.raises(UserError, match="found 'rkdd'; did you mean 'rkd'"):
        changed(tiny_experiment("x"), {"objective.method": "rkdd"})
    with pytest.raises(UserError, match="--arms: no method 'vit'; did you mean 'vid'"):
        parse_arms("ce,vit", [])
    assert list(parse_arms("ce,kd,dcd,rkd,crd+kd", [])) == ["ce", "kd", "dcd", "rkd", "crd+kd"]


def test_names_are_known_without_importing_the_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes torch, and seconds."""
    known = method_names()
    monkeypatch.delitem(sys.modules, "dcd_core.objectives")
    assert method_names() == known
    assert "dcd_core.objectives" not in sys.modules
    assert {"ce", "dcd+kd", "rrd", "crd+kd"} <= set(known)


def test_looking_at_hyperparameters_draws_no_random_number() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    objective(method="crd", method_args={"num_negatives": 5})
    assert torch.equal(torch.rand(3), expected)


def test_another_method_leaves_the_old_one_s_settings_behind() -> None:
    base = tiny_experiment(
        "x",
        {
            "objective.method": "fitnet",
            "objective.hint_layers": "conv",
            "objective.ce_weight": 0.5,
        },
    )
    vid = changed(base, {"objective.method": "vid"}).objective
    assert (vid.method_weight, vid.hint_layers, vid.ce_weight) == (1, "conv", 0.5)
    rkd = changed(base, {"objective.method": "rkd+kd"}).objective
    assert (rkd.method_weight, rkd.kd_weight, rkd.hint_layers) == (1, 1, None)
    cc = tiny_experiment("x", {"objective.method": "cc", "objective.method_args": {"order": 3}})
    assert changed(cc, {"objective.method": "cc+kd"}).objective.method_args == {"order": 3}
    assert changed(cc, {"objective.method": "ce"}).objective.method_args == {}


@pytest.mark.parametrize("name", WITH_HINTS)
def test_the_teacher_s_cache_is_off_where_intermediate_features_are_compared(name: str) -> None:
    auto = tiny_experiment("x", {"objective.method": name})
    assert cache_place(auto, one_of_many=True) is None
    assert cache_place(changed(auto, {"objective.method": "rkd"}), one_of_many=True) is not None
    for setting in ({"teacher_cache.mode": "on"}, {"teacher_cache.path": "./here"}):
        with pytest.raises(UserError, match=f"method '{name}' compares intermediate features"):
            tiny_experiment("x", {"objective.method": name, **setting})


def test_the_documentation_shows_each_method_with_its_defaults() -> None:
    text = (REPOSITORY / "docs" / "methods.md").read_text()
    shown, plain = {}, []
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        values = yaml.safe_load(block)["objective"]
        if "method_weight" in values:
            shown[values["method"]] = objective(**values)
        else:  # what is shown is the default
            assert objective(**values) == objective(method=values["method"])
            plain.append(values["method"])
    assert plain[1:] == ["ce", "kd", "dcd"]  # the first block is the page's example
    assert list(shown) == list(dict.fromkeys([*shown, *NAMES]))
    assert shown.keys() == METHODS.keys()
    for name, spec in shown.items():
        assert spec.method_weight == METHODS[name].weight
        assert spec.method_args == hyperparameters(METHODS[name])
        assert f"| `{name}` |" in text
        assert re.search(rf"\| `{name}` .*\| {METHODS[name].weight:g} \|", text)


@pytest.fixture
def write_space(tmp_path: Path) -> Callable[..., Space]:
    """A space in a file, loaded."""

    def write(parameters: dict[str, Any], **fields: Any) -> Space:
        path = tmp_path / "mine.yaml"
        values = {"title": "a", "description": "b", "parameters": parameters}
        values |= fields or {"trials": 4}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return load_space(path, Experiment)

    return write


def test_a_space_may_vary_the_method_its_weight_and_its_hyperparameters(
    write_space: Callable[..., Space],
) -> None:
    space = write_space(
        {
            "objective.method": {"choice": ["kd", "rkd", "cc+kd"]},
            "objective.method_weight": {
                "loguniform": [0.1, 10.0],
                "when": {"objective.method": ["rkd", "cc+kd"]},
            },
            "objective.method_args.gamma": {
                "uniform": [0.2, 0.6],
                "when": {"objective.method": "cc+kd"},
            },
        }
    )
    base = tiny_experiment("x")
    found = [
        changed(base, point).objective
        for _, point in corner_points(space, flatten(base.model_dump()))
    ]
    assert {spec.method for spec in found} == {"kd", "rkd", "cc+kd"}
    weights = {spec.method_weight for spec in found if spec.method != "kd"}
    assert {0.1, 10.0} <= weights
    gammas = {spec.method_args.get("gamma") for spec in found if spec.method == "cc+kd"}
    assert {0.2, 0.6} <= gammas
    with pytest.raises(ValueError, match="'rdk' does not suit the setting, which should be 'ce'"):
        write_space({"objective.method": {"choice": ["rdk"]}})


def test_a_population_may_change_the_method_s_weight(write_space: Callable[..., Space]) -> None:
    space = write_space(
        {"objective.method_weight": {"loguniform": [0.1, 10.0]}}, scheduler="pbt", searcher="random"
    )
    assert list(space.parameters) == ["objective.method_weight"]


def test_hyperparameters_of_a_term_that_is_off_are_searched_without_effect(
    write_space: Callable[..., Space],
) -> None:
    space = write_space({"objective.method_args.gamma": {"uniform": [0.2, 0.6]}})
    (sentence,) = inert_parameters(space, {"objective.method_weight": 0})
    assert "objective.method_weight is 0" in sentence
    assert not inert_parameters(space, {"objective.method_weight": 2.0})


# Training


@pytest.mark.parametrize("suffix", ["", "+kd"])
@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains(resnet_file: Path, name: str, suffix: str) -> None:
    values = {
        "objective.method": f"{name}{suffix}",
        "objective.method_args": SMALL.get(name, {}),
        "optimizer.max_grad_norm": 1.0,  # the weights are those of a trained teacher's numbers
        "optimizer.lr": 0.01,
    }
    outcome = run_quietly(resnets(resnet_file, values))
    points = recorded(outcome.folder)
    spec = objective(method=f"{name}{suffix}")
    for epoch in (1, 2):
        terms = {key for key, step in points if step == epoch and key.startswith("train/")}
        expected = {"train/loss", "train/ce", f"train/{name}"} | ({"train/kd"} if suffix else set())
        assert terms == expected
        total = points["train/ce", epoch] + spec.method_weight * points[f"train/{name}", epoch]
        total += spec.kd_weight * points.get(("train/kd", epoch), 0)
        assert points["train/loss", epoch] == pytest.approx(total, rel=1e-5)
    # What it learns is not the student's.
    weights = outcome.folder.read("student/weights.safetensors")
    assert b"method" not in weights


@pytest.mark.parametrize("name", ["crd", "rrd", "fitnet"])
def test_a_resumed_run_of_a_method_is_the_uninterrupted_one(resnet_file: Path, name: str) -> None:
    values = {
        "objective.method": name,
        "objective.method_args": SMALL.get(name, {}),
        "train.epochs": 3,
        "optimizer.lr": 0.01,
        "schedule.kind": "constant",
        "storage.keep": 3,
    }
    whole = run_quietly(resnets(resnet_file, {**values, "storage.path": "whole"}))
    in_parts = resnets(resnet_file, {**values, "storage.path": "parts"})
    run_quietly(in_parts)
    # As if it had been killed in the second epoch.
    folder = Path("parts/tiny")
    for path in folder.glob("checkpoints/*"):
        if "1" not in path.name:
            path.unlink() if path.is_file() else _remove(path)
    (folder / "result.json").unlink()
    (folder / "state.json").unlink()
    resumed = run_quietly(in_parts)
    assert recorded(resumed.folder) == recorded(whole.folder)
    states = [Checkpoints(run.folder / "checkpoints", keep=3).load(3) for run in (whole, resumed)]
    assert states[0] is not None and states[1] is not None
    ours, theirs = (state.state["distiller"] for state in states if state is not None)
    assert any(key.startswith("method.") for key in ours)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_a_change_of_a_method_s_weight_acts_from_its_epoch_on(resnet_file: Path) -> None:
    values = {"objective.method": "fitnet", "train.epochs": 3, "storage.keep": 3}
    values |= {"optimizer.lr": 0.01, "optimizer.weight_decay": 0.1}
    schedule = [{"epoch": 2, "method_weight": 0}, {"epoch": 3, "method_weight": 2}]
    plain = run_quietly(resnets(resnet_file, values))
    found = run_quietly(
        resnets(resnet_file, {**values, "objective.schedule": schedule, "name": "scheduled"})
    )
    points, before = recorded(found.folder), recorded(plain.folder)
    assert points["train/fitnet", 1] == before["train/fitnet", 1]
    assert ("train/fitnet", 2) not in points
    total = points["train/ce", 3] + 2 * points["train/fitnet", 3]
    assert points["train/loss", 3] == pytest.approx(total, rel=1e-6)
    # While it rests, what it has learned stays as it was.
    checkpoints = Checkpoints(found.folder / "checkpoints", keep=3)
    states = [checkpoints.load(epoch) for epoch in (1, 2, 3)]
    regressors = [s.state["distiller"]["method.regressors.0.weight"] for s in states if s]
    assert torch.equal(regressors[0], regressors[1])
    assert not torch.equal(regressors[1], regressors[2])


def test_layers_may_be_named_for_networks_of_one_s_own(teacher_file: Path) -> None:
    values = {"objective.method": "vid", "objective.hint_layers": ["conv", "hidden"]}
    points = recorded(run_quietly(tiny_experiment(teacher_file, values)).folder)
    assert points["train/vid", 2] < points["train/vid", 1]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (None, "where the stages of the student, a Tiny, end is not known: set hint_layers"),
        ("conw", "hint_layers 'conw' is not a module of Tiny: did you mean 'conv'?"),
        ({"student": "conv", "teacher": "layer9"}, "hint_layers 'layer9' is not a module of Tiny"),
        ("hidden", "all of these layers give one pixel: name earlier ones"),
    ],
)
def test_layers_that_are_not_there_are_refused_before_anything_starts(
    teacher_file: Path, layers: Any, message: str
) -> None:
    values = {"objective.method": "at", "objective.hint_layers": layers}
    with pytest.raises(UserError, match=re.escape(message)):
        run_quietly(tiny_experiment(teacher_file, values))
    assert not Path("dcd_runs/tiny").exists()


def test_dkd_needs_a_teacher_of_the_same_classes(tmp_path: Path) -> None:
    from tiny_experiment import save_teacher

    other = save_teacher(tmp_path, num_classes=12)
    values = {"teacher.num_classes": 12, "objective.method": "dkd"}
    with pytest.raises(UserError, match="it has 12 classes and the data 10"):
        run_quietly(tiny_experiment(other, values))
    outcome = run_quietly(tiny_experiment(other, {**values, "objective.method": "rkd"}))
    assert ("train/rkd", 2) in recorded(outcome.folder)


def test_the_plan_says_what_a_method_compares_and_learns(resnet_file: Path) -> None:
    text = describe_plan(resnets(resnet_file, {"objective.method": "at"}))
    assert (
        "at compares intermediate features of student with teacher: 16x16x16 with 16x16x16" in text
    )
    assert "cache      off: it keeps no intermediate features, which at compares" in text
    text = describe_plan(resnets(resnet_file, {"objective.method": "crd", "name": "other"}))
    # Two heads of 64 features and a bias to 128.
    assert f"{2 * 65 * 128:,} more while training (of crd)" in text
    text = describe_plan(resnets(resnet_file, {"objective.method": "dkd+kd", "name": "third"}))
    assert "dkd+kd grows to its full size over 20 epochs and there are" in text
    assert "dkd takes the place of KD, which is counted twice so" in text


# Adding one


def test_a_method_is_added_by_one_module_and_one_line(
    teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of CONTRIBUTING.md."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(r"```python\n(class Mimic.*?)```", text, re.DOTALL)
    imports = (
        "from __future__ import annotations\n"
        "from typing import ClassVar\n"
        "from torch import Tensor\n"
        "from dcd_core.features import HintedOutput\n"
        "from dcd_core.objectives.method import Lesson, Method, Sizes, check_number\n"
    )
    module = types.ModuleType("mimic")
    monkeypatch.setitem(sys.modules, "mimic", module)
    exec(imports + source, module.__dict__)

    monkeypatch.setitem(METHODS, "mimic", module.Mimic)  # the line

    assert {"mimic", "mimic+kd"} <= set(method_names())
    assert list(parse_arms("kd,mimic", [])) == ["kd", "mimic"]
    with pytest.raises(ValidationError, match="did you mean 'power'"):
        objective(method="mimic", method_args={"powr": 1})
    runs = {
        power: recorded(
            run_quietly(
                tiny_experiment(
                    teacher_file,
                    {
                        "name": f"power-{power}",
                        "objective.method": "mimic+kd",
                        "objective.method_args": {"power": power},
                    },
                )
            ).folder
        )
        for power in (1.0, 2.0)
    }
    assert runs[1.0]["train/mimic", 1] != runs[2.0]["train/mimic", 1]
    points = runs[2.0]
    total = points["train/ce", 2] + points["train/kd", 2] + 0.1 * points["train/mimic", 2]
    assert points["train/loss", 2] == pytest.approx(total, rel=1e-6)

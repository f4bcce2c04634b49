from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import search_spaces
from dcd_core import build_model
from orchestrator.experiment_file import build_experiment, changed, flatten
from orchestrator.spec import Experiment
from search_spaces import (
    Goal,
    Parameter,
    Space,
    available_spaces,
    check_space,
    corner_points,
    load_space,
    narrow,
)

FOLDER = Path(search_spaces.__file__).parent

Refusal = Callable[..., str]


def _experiment() -> Experiment:
    return build_experiment({"name": "a", "teacher": {}}, where="test")


def _space(parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Plain values of a small valid space."""
    values = {"title": "a", "description": "b", "trials": 4, "parameters": parameters} | fields
    return {key: value for key, value in values.items() if value is not None}


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """Writes a space to a file, loads it, and gives the error without the file's name."""

    def refuse(parameters: dict[str, Any], **fields: Any) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(_space(parameters, **fields), sort_keys=False))
        with pytest.raises(ValueError) as caught:
            load_space(path, Experiment)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message.removeprefix(f"{path}: ")

    return refuse


# What is shipped


def test_the_shipped_spaces_are_listed_by_name() -> None:
    assert available_spaces() == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert available_spaces() == [
        "dcd",
        "dcd_fine",
        "dcd_paper",
        "optim",
        "pbt_schedule",
        "student",
    ]


@pytest.mark.parametrize("name", available_spaces())
def test_a_shipped_space_loads_by_name_and_by_path(name: str) -> None:
    space = load_space(name, Experiment)
    assert load_space(FOLDER / f"{name}.yaml", Experiment) == space
    assert load_space(str(FOLDER / f"{name}.yaml"), Experiment) == space
    assert space.goals[0] == Goal(metric="val/top1", mode="max")


@pytest.mark.parametrize("method", ["ce", "kd", "dcd", "dcd+kd"])
@pytest.mark.parametrize("name", available_spaces())
def test_every_corner_of_a_shipped_space_makes_a_valid_experiment(name: str, method: str) -> None:
    experiment = changed(_experiment(), {"objective.method": method})
    space, base = load_space(name, Experiment), flatten(experiment.model_dump())
    if space.around is not None:
        if method == "ce":
            return  # nothing to be near to
        space = narrow(space, base, where="a run")
        check_space(space, Experiment, where="narrowed")
    for _, settings in corner_points(space, base):
        values = flatten(changed(experiment, settings).model_dump())
        assert {path: values[path] for path in settings} == settings


@pytest.mark.parametrize("name", available_spaces())
def test_a_space_is_the_same_after_a_way_through_json(name: str) -> None:
    space = load_space(name, Experiment)
    assert Space.model_validate(json.loads(space.model_dump_json())) == space


def test_the_student_space_has_built_in_networks_of_widely_differing_size() -> None:
    space = load_space("student", Experiment)
    names = [str(value) for value in space.parameters["student.source"].values]
    models = [build_model(name, num_classes=10) for name in names]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 50 * sizes[0]
    assert space.goals[1] == Goal(metric="student/parameters", mode="min")


def test_the_fine_space_searches_what_the_dcd_space_does_in_wider_ranges() -> None:
    fine, coarse = load_space("dcd_fine", Experiment), load_space("dcd", Experiment)
    assert list(fine.parameters) == list(coarse.parameters)
    for path, parameter in coarse.parameters.items():
        ends = parameter.values if parameter.kind == "choice" else parameter.ends()
        assert all(fine.parameters[path].contains(value) for value in ends)
        assert fine.parameters[path].when == parameter.when


@pytest.mark.parametrize("name", ["dcd", "optim", "pbt_schedule", "student"])
def test_the_first_trial_is_what_distilling_without_a_search_gives(name: str) -> None:
    defaults = _experiment()
    assert changed(defaults, load_space(name, Experiment).first) == defaults


def test_the_paper_space_starts_with_the_papers_values() -> None:
    first = load_space("dcd_paper", Experiment).first
    assert first["objective.init_temperature"] == pytest.approx(math.exp(-1), rel=1e-15)  # tau = 1
    assert first["objective.consistency_weight"] == 0.5  # alpha
    assert first["objective.dcd_weight"] == 1.0  # beta
    assert first["objective.kd_weight"] == 1.0  # lambda
    assert first["optimizer.scalar_lr_ratio"] == 1.0  # one learning rate for all


def test_the_dcd_space_searches_the_bias_where_it_acts_only() -> None:
    bias = load_space("dcd", Experiment).parameters["objective.init_bias"]
    assert bias.when == {"objective.contrast": ("sigmoid",)}
    for num_images in (40, 64, 256, 1024):
        assert bias.contains(-math.log(num_images - 1))


def test_the_paper_space_has_softmax_only_and_says_why_there_is_no_bias() -> None:
    space = load_space("dcd_paper", Experiment)
    assert space.parameters["objective.contrast"].values == ("softmax",)
    assert "objective.init_bias" not in space.parameters
    assert "bias is absent because it has no effect" in space.description


def test_dcd_settings_are_left_alone_where_the_method_ignores_them() -> None:
    for path, parameter in load_space("dcd", Experiment).parameters.items():
        methods = parameter.when.get("objective.method")
        if path == "objective.kd_weight":
            assert methods == ("kd", "dcd+kd")
        elif path != "objective.init_bias":
            assert methods == ("dcd", "dcd+kd")


# Finding and reading


def test_a_misspelt_name_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"no search space 'optm'; did you mean 'optim'\?"):
        load_space("optm", Experiment)


def test_a_missing_file_is_named_with_what_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.yaml: no such file; the shipped spaces are dcd, "):
        load_space(tmp_path / "gone.yaml", Experiment)


def test_a_folder_is_no_space(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_space(tmp_path, Experiment)


def test_broken_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("title: [a\ntrials: 3\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: not valid YAML: .*line 2"):
        load_space(path, Experiment)


def test_a_parameter_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: a\ndescription: b\ntrials: 3\nparameters:\n"
        "  optimizer.lr: {uniform: [0.1, 0.2]}\n"
        "  optimizer.lr: {uniform: [0.3, 0.4]}\n"
    )
    with pytest.raises(ValueError, match=r"line 6, .*the key 'optimizer.lr' appears twice"):
        load_space(path, Experiment)


def test_a_number_without_a_decimal_point_may_have_an_exponent(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: a\ndescription: b\ntrials: 3\nparameters:\n"
        "  optimizer.lr: {loguniform: [1e-3, 1E+0]}\n"
    )
    assert load_space(path, Experiment).parameters["optimizer.lr"].values == (0.001, 1.0)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- a\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: should be a mapping, found \['a'\]"):
        load_space(path, Experiment)


# The shape of a space


def test_unknown_and_missing_keys_are_named(refusal: Refusal) -> None:
    lr = {"optimizer.lr": {"uniform": [0.1, 0.2]}}
    assert refusal(lr, trails=3) == "trails: unknown key 'trails'; did you mean 'trials'?"
    assert refusal(lr, xyz=3).startswith("xyz: unknown key 'xyz'; known keys: title, description")
    assert refusal(lr, title=None) == "title: is missing"
    assert refusal({"optimizer.lr": {"unifrom": [0.1, 0.2]}}) == (
        "parameters.optimizer.lr.unifrom: unknown key 'unifrom'; did you mean 'uniform'?"
    )
    assert refusal(lr, asha={"gracee": 3}) == (
        "asha.gracee: unknown key 'gracee'; did you mean 'grace'?"
    )
    assert refusal(lr, pbt={"size": 3}) == (
        "pbt.size: unknown key 'size'; known keys: population, interval"
    )
    assert refusal(lr, objectives=[{"mode": "max"}]) == "objectives.0.metric: is missing"
    assert refusal(lr, objectives=[{"metrik": "val/top1"}]) == (
        "objectives.0.metrik: unknown key 'metrik'; did you mean 'metric'?"
    )


def test_a_wrong_choice_or_type_is_told_with_what_is_allowed(refusal: Refusal) -> None:
    lr = {"optimizer.lr": {"uniform": [0.1, 0.2]}}
    assert refusal(lr, scheduler="hyperband") == (
        "scheduler: should be 'asha', 'median', 'pbt' or 'none', found 'hyperband'"
    )
    assert "trials: should be a valid integer, found '4'" in refusal(lr, trials="4")
    assert refusal({}).startswith("parameters: ")
    assert refusal({"optimizer.lr": 0.1}) == (
        "parameters.optimizer.lr: should be a mapping, found 0.1"
    )
    assert refusal({"optimizer.lr": {"uniform": 0.1}}) == (
        "parameters.optimizer.lr.uniform: should be a list, found 0.1"
    )


def test_a_parameter_has_exactly_one_domain(refusal: Refusal) -> None:
    both = {"uniform": [0.1, 0.2], "choice": [0.1]}
    assert "found uniform and choice" in refusal({"optimizer.lr": both})
    assert "needs exactly one domain of uniform, loguniform" in refusal({"optimizer.lr": {}})


@pytest.mark.parametrize(
    ("domain", "rule"),
    [
        ({"uniform": [0.1]}, r"uniform takes [low, high], not [0.1]"),
        ({"uniform": [0.1, 0.2, 0.3]}, "uniform takes [low, high], not"),
        ({"uniform": [0.2, 0.1]}, "with low below high, not [0.2, 0.1]"),
        ({"uniform": [0.2, 0.2]}, "with low below high"),
        ({"uniform": [0.1, "a"]}, "'a' is not a finite number"),
        ({"uniform": [0.1, True]}, "True is not a finite number"),
        ({"uniform": [0.1, math.inf]}, "inf is not a finite number"),
        ({"loguniform": [0, 1]}, "loguniform takes [low, high] with low above 0"),
        ({"quniform": [0.1, 0.5]}, "quniform takes [low, high, step], not"),
        ({"quniform": [0.1, 0.5, 0.3]}, "high a whole number of steps above low"),
        ({"quniform": [0.1, 0.5, -0.1]}, "high a whole number of steps above low"),
        ({"randint": [1, 2.5]}, "should be a valid integer"),
        ({"choice": []}, "choice takes [value, ...], at least one value"),
        ({"choice": [0.1, 0.1]}, "each value once, not [0.1, 0.1]"),
        ({"choice": [[0.1]]}, "[0.1] is not a number, a text, true, false or null"),
        ({"choice": [math.nan]}, "nan is not a finite number"),
    ],
)
def test_a_malformed_domain_is_refused_with_its_form(
    domain: dict[str, Any], rule: str, refusal: Refusal
) -> None:
    message = refusal({"optimizer.lr": domain})
    assert message.startswith("parameters.optimizer.lr")
    assert rule in message


def test_tuning_on_the_test_split_is_refused(refusal: Refusal) -> None:
    message = refusal({"optimizer.lr": {"uniform": [0.1, 0.2]}}, metric="test/top1")
    assert "would tune on the test split" in message


def test_a_grid_has_grid_domains_only_and_counts_its_own_trials(refusal: Refusal) -> None:
    uniform, grid = {"uniform": [0.1, 0.2]}, {"grid": [0.1, 0.2]}
    message = refusal({"optimizer.lr": uniform}, searcher="grid", trials=None)
    assert "parameters.optimizer.lr: searcher 'grid' cannot use a uniform domain" in message
    assert "searcher 'tpe' cannot use a grid domain" in refusal({"optimizer.lr": grid})
    assert "drop it" in refusal({"optimizer.lr": grid}, searcher="grid")


def test_a_grid_without_trials_is_fine() -> None:
    values = _space({"optimizer.lr": {"grid": [0.1, 0.2]}}, searcher="grid", trials=None)
    space = Space.model_validate(values)
    check_space(space, Experiment, where="test")
    assert space.parameters["optimizer.lr"].values == (0.1, 0.2)


# Domains


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        ({"uniform": [0, 1]}, [0, 0.5, 1], [-0.1, 1.1, True, "0.5", None]),
        ({"loguniform": [0.1, 10]}, [0.1, 10.0], [0.0, 10.1]),
        ({"quniform": [0.1, 0.7, 0.2]}, [0.1, 0.3, 0.5, 0.7], [0.2, 0.9]),
        ({"quniform": [32, 128, 32]}, [32, 96, 128], [48, 160]),
        ({"randint": [1, 3]}, [1, 2, 3], [0, 1.5, 2.0, 4]),
        ({"choice": ["a", None, 2]}, ["a", None, 2], ["b", 3]),
        ({"grid": [1, 2]}, [1, 2], [3]),
    ],
)
def test_a_domain_contains_its_ends_and_nothing_beyond(
    domain: dict[str, Any], inside: list[Any], outside: list[Any]
) -> None:
    parameter = Parameter.model_validate(domain)
    assert parameter.kind == next(iter(domain))
    assert [value for value in inside if not parameter.contains(value)] == []
    assert [value for value in outside if parameter.contains(value)] == []


def test_whole_numbers_stay_whole_only_where_the_domain_gives_whole_numbers() -> None:
    def types(domain: dict[str, Any]) -> set[type]:
        return {type(value) for value in Parameter.model_validate(domain).values}

    assert types({"quniform": [32, 128, 32]}) == {int}
    assert types({"quniform": [0, 1, 0.5]}) == {float}
    assert types({"uniform": [0, 1]}) == {float}
    assert types({"choice": [3, 2.5]}) == {int, float}


# Against the experiment


def test_a_path_that_does_not_exist_gets_the_nearest_one(refusal: Refusal) -> None:
    assert refusal({"objective.init_temprature": {"uniform": [0.1, 1]}}) == (
        "parameters.objective.init_temprature: the experiment has no "
        "'objective.init_temprature'; did you mean 'objective.init_temperature'?"
    )
    assert refusal({"objective.kd_weight.x": {"uniform": [0.1, 1]}}).endswith(
        "did you mean 'objective.kd_weight'?"
    )


def test_a_section_is_no_setting(refusal: Refusal) -> None:
    assert "'objective' is a section: name a setting in it, as 'objective.method'" in refusal(
        {"objective": {"choice": ["a"]}}
    )
    assert "'teacher' is a section" in refusal({"teacher": {"choice": [None]}})


@pytest.mark.parametrize(
    ("path", "domain"),
    [
        ("teacher.fit.epochs", {"randint": [1, 9]}),  # in optional sections
        ("objective.feature_layer", {"choice": ["layer3", None]}),  # a text or a section
        ("objective.feature_layer.student", {"choice": ["layer3"]}),
        ("student.args.width", {"choice": [16, 32]}),  # free keys
        ("tracking.register", {"choice": ["a"]}),  # as it is spelt in YAML
        ("train.batch_size", {"quniform": [32, 128, 32]}),
        ("optimizer.lr", {"randint": [1, 2]}),  # a whole number is a number too
        ("optimizer.max_grad_norm", {"choice": [None, 1.0]}),
    ],
)
def test_paths_into_all_kinds_of_fields_are_found(path: str, domain: dict[str, Any]) -> None:
    space = Space.model_validate(_space({path: domain}))
    check_space(space, Experiment, where="test")


@pytest.mark.parametrize(
    ("path", "domain", "rule"),
    [
        (
            "objective.kd_weight",
            {"uniform": [-1, 1]},
            "-1.0 does not suit .* greater than or equal",
        ),
        ("optimizer.momentum", {"uniform": [0.5, 1]}, "uniform: 1.0 does not suit .* less than 1"),
        ("train.epochs", {"uniform": [1, 9]}, "1.0 does not suit .* valid integer"),
        ("train.epochs", {"quniform": [1, 2, 0.5]}, "1.0 does not suit .* valid integer"),
        ("train.batch_size", {"randint": [0, 9]}, "0 does not suit .* greater than or equal to 1"),
        ("data.val_fraction", {"choice": [0.1, 1.0]}, "1.0 does not suit .* less than 1"),
        ("objective.contrast", {"choice": ["softmax", "tanh"]}, "'tanh' .* 'softmax' or 'sigmoid'"),
        ("data.flip", {"choice": [True, 0]}, "0 does not suit .* valid boolean"),
        ("optimizer.lr", {"choice": ["0.1"]}, "'0.1' does not suit .* valid number"),
        ("objective.init_bias", {"choice": ["no"]}, "'no' .* valid number or 'auto'"),
        ("data.num_classes", {"randint": [1, 3]}, "1 does not suit .* equal to 2"),
    ],
)
def test_ends_and_choices_outside_a_settings_range_are_refused(
    path: str, domain: dict[str, Any], rule: str
) -> None:
    when = {"objective.contrast": "sigmoid"} if path == "objective.init_bias" else {}
    space = Space.model_validate(_space({path: {**domain, "when": when}}))
    with pytest.raises(ValueError, match=rf"^here: parameters\.{path}\..*{rule}"):
        check_space(space, Experiment, where="here")


# The bias

BIAS = {"uniform": [-8, 0]}
BIAS_IF_SIGMOID = {"uniform": [-8, 0], "when": {"objective.contrast": "sigmoid"}}


@pytest.mark.parametrize(
    "parameters",
    [
        {"objective.init_bias": BIAS},  # softmax is the default
        {"objective.contrast": {"choice": ["softmax"]}, "objective.init_bias": BIAS},
        {"objective.contrast": {"choice": ["softmax"]}, "objective.init_bias": BIAS_IF_SIGMOID},
        {"objective.init_bias": BIAS | {"when": {"objective.contrast": "softmax"}}},
        {
            "objective.contrast": {"choice": ["softmax", "sigmoid"]},
            "objective.init_bias": BIAS | {"when": {"objective.contrast": "softmax"}},
        },
    ],
)
def test_a_bias_under_softmax_only_is_refused_with_the_reason(
    parameters: dict[str, Any], refusal: Refusal
) -> None:
    message = refusal(parameters)
    assert message.startswith("parameters.objective.init_bias: ")
    assert "under softmax only, where it is inert (softmax ignores a shift" in message
    assert "add `when: {objective.contrast: sigmoid}`" in message


@pytest.mark.parametrize(
    "parameters",
    [
        {"objective.init_bias": BIAS_IF_SIGMOID},
        {"objective.contrast": {"choice": ["sigmoid"]}, "objective.init_bias": BIAS},
        {"objective.contrast": {"choice": ["softmax", "sigmoid"]}, "objective.init_bias": BIAS},
    ],
)
def test_a_bias_that_can_meet_the_sigmoid_contrast_is_accepted(parameters: dict[str, Any]) -> None:
    check_space(Space.model_validate(_space(parameters)), Experiment, where="test")


# Conditions

CONTRAST = {"choice": ["softmax", "sigmoid"]}


def test_a_condition_takes_one_value_or_several() -> None:
    def when(value: Any) -> Any:
        domain = {"uniform": [0, 1], "when": {"objective.method": value}}
        return Parameter.model_validate(domain).when

    assert when("dcd") == {"objective.method": ("dcd",)}
    assert when(["dcd", "dcd+kd"]) == {"objective.method": ("dcd", "dcd+kd")}


@pytest.mark.parametrize(
    ("other", "value", "rule"),
    [
        ("objective.contrst", "sigmoid", "did you mean 'objective.contrast'?"),
        ("objective.method", "dcd+", "'dcd+' does not suit the setting"),
        ("objective.method", ["dcd", "xx"], "'xx' does not suit the setting"),
        ("objective.method", [], "at least 1 item"),
        ("objective.negatives", "other_class", "is outside the parameter's domain, choice ['all']"),
        ("optimizer.lr", 0.1, "has a uniform domain, which never hits one value"),
        ("objective.contrast", "sigmoid", "names a parameter above: move it up"),
        ("objective.dcd_weight", 1.0, "cannot be its own condition: drop it"),
    ],
)
def test_a_condition_that_cannot_be_decided_or_hold_is_refused(
    other: str, value: Any, rule: str, refusal: Refusal
) -> None:
    message = refusal(
        {
            "objective.negatives": {"choice": ["all"]},
            "optimizer.lr": {"uniform": [0.1, 0.2]},
            "objective.dcd_weight": {"uniform": [0.1, 1], "when": {other: value}},
            "objective.contrast": CONTRAST,
        }
    )
    assert message.startswith(f"parameters.objective.dcd_weight.when.{other}: ")
    assert rule in message


def test_settings_that_are_each_others_condition_are_refused(refusal: Refusal) -> None:
    message = refusal(
        {
            "objective.contrast": {**CONTRAST, "when": {"objective.negatives": "all"}},
            "objective.negatives": {"choice": ["all"], "when": {"objective.contrast": "sigmoid"}},
        }
    )
    assert message == (
        "parameters.objective.contrast.when.objective.negatives: objective.contrast and "
        "objective.negatives are each other's condition: drop one of the two"
    )


# The first point


@pytest.mark.parametrize(
    ("first", "rule"),
    [
        ({"objective.contrst": "softmax"}, "did you mean 'objective.contrast'?"),
        ({"objective.contrast": "tanh"}, "first.objective.contrast: 'tanh' does not suit"),
        (
            {"objective.contrast": "softmax", "objective.kd_weight": 3},
            "first.objective.kd_weight: 3 is outside the parameter's domain, uniform [0.0, 2.0]",
        ),
        ({"objective.contrast": "softmax"}, "first: has no value for objective.kd_weight: add one"),
        (
            {
                "objective.contrast": "softmax",
                "objective.init_bias": -1.0,
                "objective.kd_weight": 1,
            },
            "first.objective.init_bias: is not active at this point, for it needs "
            "objective.contrast: sigmoid: drop it",
        ),
        (
            {"objective.contrast": "sigmoid", "objective.kd_weight": 1},
            "has no value for objective.init_bias",
        ),
    ],
)
def test_a_first_point_that_is_not_in_the_space_is_refused(
    first: dict[str, Any], rule: str, refusal: Refusal
) -> None:
    parameters = {
        "objective.contrast": CONTRAST,
        "objective.init_bias": BIAS_IF_SIGMOID,
        "objective.kd_weight": {"uniform": [0, 2]},
    }
    assert rule in refusal(parameters, first=first)


def test_a_parameter_below_an_inactive_one_is_inactive_too(refusal: Refusal) -> None:
    parameters = {
        "objective.contrast": CONTRAST,
        "objective.negatives": {
            "choice": ["all", "other_class"],
            "when": {"objective.contrast": "sigmoid"},
        },
        "objective.kd_weight": {"uniform": [0, 2], "when": {"objective.negatives": "all"}},
    }
    first = {"objective.contrast": "softmax"}
    check_space(Space.model_validate(_space(parameters, first=first)), Experiment, where="test")
    message = refusal(parameters, first=first | {"objective.kd_weight": 1.0})
    assert "first.objective.kd_weight: is not active at this point" in message


# The package


def test_search_spaces_imports_only_pydantic_yaml_and_the_standard_library() -> None:
    allowed = {"pydantic", "yaml", "search_spaces", *sys.stdlib_module_names}
    assert not {"orchestrator", "dcd_core", "torch", "ray", "mlflow"} & allowed
    files = sorted(FOLDER.rglob("*.py"))
    assert files
    imported: set[str] = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative imports are not used here"
                imported.add((node.module or "").partition(".")[0])
    assert {"pydantic", "yaml"} <= imported
    assert imported <= allowed

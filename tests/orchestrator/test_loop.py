"""The epoch loop in this process: what it learns, what it leaves, and how it goes on."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_networks
import torch
from tiny_experiment import recorded, run_quietly, tiny_experiment
from tiny_networks import Tiny
from torch import Tensor

from dcd_core import normalize
from orchestrator.checkpoints import Checkpoint, Checkpoints
from orchestrator.data import load_dataset
from orchestrator.distillation import Outcome, build_work
from orchestrator.errors import Diverged, Interrupted, UserError
from orchestrator.inputs import read_inputs
from orchestrator.journal import Journal
from orchestrator.reporter import ProcessReporter
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.student_model import load_student, read_package
from orchestrator.worker import run_work

Hook = Callable[[Tiny, Tensor], Tensor]
NUM_STEPS = 3  # 50 training images in batches of 20, 20 and 10


@pytest.fixture(autouse=True)
def _in_a_workplace(workplace: Path) -> None:
    pass


@pytest.fixture
def on_forward(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hook | None], None]:
    """Sets what every tiny network calls first."""

    def set_hook(hook: Hook | None) -> None:
        monkeypatch.setattr(tiny_networks, "on_forward", hook)

    return set_hook


def last_checkpoint(outcome: Outcome) -> Checkpoint:
    found = Checkpoints(outcome.folder / "checkpoints", keep=1).latest()
    assert found is not None
    return found


def weights(state: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """All tensors of a nested state, by dotted path."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, dict):
            found |= weights(value, f"{prefix}{key}.")
    return found


def assert_same_run(found: Outcome, expected: Outcome) -> None:
    """Every metric but wall times, every learned tensor and the student are the same bits."""
    assert recorded(found.folder) == recorded(expected.folder)
    assert found.metrics == expected.metrics
    ours, theirs = last_checkpoint(found), last_checkpoint(expected)
    assert ours.best == theirs.best
    tensors, others = weights(ours.state), weights(theirs.state)
    assert tensors.keys() == others.keys()
    assert len(tensors) > 20
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)
    exported = Folder(f"{found.folder.location}/student").read("weights.safetensors")
    assert exported == Folder(f"{expected.folder.location}/student").read("weights.safetensors")


def interrupt_in_pass(number: int) -> Hook:
    """A signal that arrives in the student's training pass of this number, from 1."""
    passes = 0

    def hook(network: Tiny, images: Tensor) -> Tensor:
        nonlocal passes
        passes += network.training
        if passes == number:
            raise Interrupted(signal.SIGTERM)
        return images

    return hook


RESUMABLE = {
    "sgd": {"optimizer.nesterov": True},
    "adamw": {"optimizer.name": "adamw", "optimizer.lr": 0.01, "objective.contrast": "sigmoid"},
    "bf16": {"train.precision": "bf16"},
    "adamw bf16": {"optimizer.name": "adamw", "optimizer.lr": 0.01, "train.precision": "bf16"},
    "accumulated and clipped": {"train.accumulate": 2, "optimizer.max_grad_norm": 0.5},
    "weights that change": {
        "optimizer.name": "adamw",
        "optimizer.lr": 0.01,
        "objective.schedule": [
            {"epoch": 2, "dcd_weight": 0, "kd_weight": 2},
            {"epoch": 3, "dcd_weight": 0.5, "kd_weight": 0},
        ],
    },
    "cosine with warmup": {"schedule.kind": "cosine", "schedule.warmup_epochs": 1.5},
}


@pytest.mark.parametrize("kind", RESUMABLE)
@pytest.mark.parametrize(("done", "more"), [(1, 2), (2, 1)], ids=["midway", "at the start"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    teacher_file: Path, on_forward: Callable[[Hook | None], None], kind: str, done: int, more: int
) -> None:
    passes_per_epoch = 5 if kind == "accumulated and clipped" else NUM_STEPS
    updates = {"train.epochs": 3, "student.args": {"dropout": 0.3}, **RESUMABLE[kind]}
    whole = run_quietly(tiny_experiment(teacher_file, {**updates, "storage.path": "whole"}))
    in_parts = tiny_experiment(teacher_file, {**updates, "storage.path": "parts"})
    on_forward(interrupt_in_pass(done * passes_per_epoch + more))
    with pytest.raises(Interrupted):
        run_quietly(in_parts)
    run = Folder("parts/tiny")
    assert run.read_json("state.json")["state"] == "interrupted"
    assert Checkpoints(run / "checkpoints", keep=2).epochs() == list(range(1, done + 1))
    assert run.read_json("result.json") is None
    on_forward(None)
    assert_same_run(run_quietly(in_parts), whole)


def test_a_run_interrupted_before_its_first_epoch_starts_again(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    whole = run_quietly(tiny_experiment(teacher_file, {"storage.path": "whole"}))
    in_parts = tiny_experiment(teacher_file, {"storage.path": "parts"})
    on_forward(interrupt_in_pass(2))
    with pytest.raises(Interrupted):
        run_quietly(in_parts)
    on_forward(None)
    assert_same_run(run_quietly(in_parts), whole)


def test_metrics_that_were_lost_after_their_checkpoint_are_found_again(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    whole = run_quietly(tiny_experiment(teacher_file, {"train.epochs": 3, "storage.path": "whole"}))
    in_parts = tiny_experiment(teacher_file, {"train.epochs": 3, "storage.path": "parts"})
    on_forward(interrupt_in_pass(2 * NUM_STEPS + 1))
    with pytest.raises(Interrupted):
        run_quietly(in_parts)
    run = Folder("parts/tiny")
    newest = Journal(run).read()[-1]
    assert newest.step == 2
    run.delete(f"journal/{newest.number:06d}.json")
    on_forward(None)
    resumed = run_quietly(in_parts)
    assert_same_run(resumed, whole)
    entries = [entry.step for entry in Journal(run).read() if "train/loss" in entry.metrics]
    assert entries == [1, 2, 3]


def test_a_torn_newest_checkpoint_costs_one_epoch_and_changes_nothing(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    whole = run_quietly(tiny_experiment(teacher_file, {"train.epochs": 3, "storage.path": "whole"}))
    in_parts = tiny_experiment(teacher_file, {"train.epochs": 3, "storage.path": "parts"})
    on_forward(interrupt_in_pass(2 * NUM_STEPS + 1))
    with pytest.raises(Interrupted):
        run_quietly(in_parts)
    newest = Path("parts/tiny/checkpoints/epoch_0002.pt")
    newest.write_bytes(newest.read_bytes()[:1000])
    on_forward(None)
    resumed = run_quietly(in_parts)
    assert_same_run(resumed, whole)


def test_a_run_stopped_during_its_final_evaluation_only_repeats_that(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    whole = run_quietly(tiny_experiment(teacher_file, {"storage.path": "whole"}))
    in_parts = tiny_experiment(teacher_file, {"storage.path": "parts"})
    steps = 0

    def stop_after_training(network: Tiny, images: Tensor) -> Tensor:
        nonlocal steps
        steps += network.training
        if steps == 2 * NUM_STEPS and Path("parts/tiny/checkpoints/epoch_0002.json").exists():
            raise Interrupted(signal.SIGINT)
        return images

    on_forward(stop_after_training)
    with pytest.raises(Interrupted):
        run_quietly(in_parts)
    assert not Path("parts/tiny/result.json").exists()
    trained_again = []

    def note_training(network: Tiny, images: Tensor) -> Tensor:
        if network.training:
            trained_again.append(len(images))
        return images

    on_forward(note_training)
    assert_same_run(run_quietly(in_parts), whole)
    assert trained_again == []


def test_a_finished_run_is_not_run_again(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    first = run_quietly(tiny_experiment(teacher_file))

    def never(network: Tiny, images: Tensor) -> Tensor:
        raise AssertionError("a finished run needs no network")

    on_forward(never)
    again = run_quietly(tiny_experiment(teacher_file))
    assert again.already_finished
    assert again.metrics == first.metrics


@pytest.mark.parametrize(
    ("term", "updates"),
    [("ce", {"objective.method": "ce"}), ("ce", {}), ("kd", {"objective.ce_weight": 0})],
)
def test_a_network_that_breaks_is_told_with_epoch_step_and_term(
    teacher_file: Path,
    on_forward: Callable[[Hook | None], None],
    term: str,
    updates: dict[str, Any],
) -> None:
    steps = 0

    def break_in_epoch_two(network: Tiny, images: Tensor) -> Tensor:
        nonlocal steps
        steps += network.training
        broken = network.training and steps == NUM_STEPS + 2
        return images * float("nan") if broken else images

    on_forward(break_in_epoch_two)
    with pytest.raises(Diverged) as caught:
        run_quietly(tiny_experiment(teacher_file, {"train.epochs": 3, **updates}))
    message = str(caught.value)
    assert f"{term} was not finite in epoch 2, step 2;" in message
    assert "the checkpoint of epoch 1 is kept" in message
    run = Folder("dcd_runs/tiny")
    assert run.read_json("state.json") == {"state": "failed", "message": message}
    found = Checkpoints(run / "checkpoints", keep=2).latest()
    assert found is not None
    assert found.epoch == 1
    assert all(value.isfinite().all() for value in weights(found.state).values())
    assert max(step for _, step in recorded(run)) == 1
    assert run.read_json("result.json") is None


def test_a_learning_rate_beyond_all_bounds_is_told(teacher_file: Path) -> None:
    with pytest.raises(Diverged) as caught:
        run_quietly(tiny_experiment(teacher_file, {"optimizer.lr": 1e30}))
    message = str(caught.value)
    assert re.search(r"was not finite in epoch 1, step [23]; no epoch was done\.", message)
    assert "lower optimizer.lr" in message
    assert Checkpoints(Folder("dcd_runs/tiny/checkpoints"), keep=2).latest() is None


def test_a_diverged_run_may_be_tried_again_with_another_learning_rate(teacher_file: Path) -> None:
    with pytest.raises(Diverged):
        run_quietly(tiny_experiment(teacher_file, {"optimizer.lr": 1e30}))
    outcome = run_quietly(tiny_experiment(teacher_file))
    alone = run_quietly(tiny_experiment(teacher_file, {"storage.path": "alone"}))
    assert_same_run(outcome, alone)


def test_temperature_moves_and_the_bias_keeps_every_bit_under_softmax(teacher_file: Path) -> None:
    outcome = run_quietly(
        tiny_experiment(
            teacher_file,
            {"optimizer.name": "adamw", "objective.init_bias": 0.3, "optimizer.scalar_lr_ratio": 1},
        )
    )
    learned = last_checkpoint(outcome).state["distiller"]
    assert torch.equal(learned["bias"], torch.tensor(0.3))
    assert abs(float(learned["log_temperature"]) + 1) > 1e-3
    points = recorded(outcome.folder)
    assert points["dcd/temperature", 1] != points["dcd/temperature", 2]
    assert points["dcd/temperature", 2] == pytest.approx(float(learned["log_temperature"].exp()))
    assert points["dcd/bias", 1] == points["dcd/bias", 2] == float(torch.tensor(0.3))


def test_temperature_and_bias_move_under_sigmoid_from_where_they_start(teacher_file: Path) -> None:
    outcome = run_quietly(tiny_experiment(teacher_file, {"objective.contrast": "sigmoid"}))
    points = recorded(outcome.folder)
    start = -torch.tensor(19.0).log().item()  # -ln(N - 1)
    assert points["dcd/bias", 2] == pytest.approx(start, abs=0.2)
    assert abs(points["dcd/bias", 1] - start) > 1e-4
    assert points["dcd/bias", 1] != points["dcd/bias", 2]
    assert abs(points["dcd/temperature", 2] - 0.36787944) > 1e-5


def test_the_scalars_have_their_own_rate_and_no_decay(teacher_file: Path) -> None:
    outcome = run_quietly(
        tiny_experiment(
            teacher_file,
            {"objective.contrast": "sigmoid", "optimizer.lr": 0.2, "optimizer.weight_decay": 0.01},
        )
    )
    weights_group, scalars = last_checkpoint(outcome).state["optimizer"]["param_groups"]
    assert (weights_group["peak_lr"], weights_group["weight_decay"]) == (0.2, 0.01)
    assert scalars["peak_lr"] == pytest.approx(0.02)
    assert scalars["weight_decay"] == 0.0
    assert len(scalars["params"]) == 2


def test_the_temperature_stops_at_its_limit(teacher_file: Path) -> None:
    updates = {
        "objective.init_temperature": 0.36,
        "objective.min_temperature": 0.1,
        "optimizer.name": "adamw",
        "optimizer.scalar_lr_ratio": 2,
        "train.epochs": 6,
    }
    free = recorded(run_quietly(tiny_experiment(teacher_file, updates)).folder)
    updates |= {"objective.min_temperature": 0.355, "name": "limited"}
    limited = recorded(run_quietly(tiny_experiment(teacher_file, updates)).folder)
    assert min(free["dcd/temperature", epoch] for epoch in range(1, 7)) < 0.35
    lowest = min(limited["dcd/temperature", epoch] for epoch in range(1, 7))
    assert lowest == pytest.approx(0.355, rel=1e-6)


WEIGHTS = {"ce": 1.0, "kd": 1.0, "contrast": 1.0, "consistency": 0.5}  # of method dcd+kd


@pytest.mark.parametrize(
    ("change", "weights"),
    [
        # what weighs each of the reported terms from the change on
        ({"ce_weight": 0.25}, {"ce": 0.25}),
        ({"ce_weight": 0}, {"ce": 0}),
        ({"kd_weight": 0}, {"kd": 0}),
        ({"kd_weight": 2, "ce_weight": 3}, {"kd": 2, "ce": 3}),
        ({"dcd_weight": 0.25}, {"contrast": 0.25, "consistency": 0.125}),
        ({"dcd_weight": 0}, {"contrast": 0, "consistency": 0}),
        ({"consistency_weight": 2}, {"consistency": 2}),
        ({"consistency_weight": 0}, {"consistency": 0}),
        ({"kd_temperature": 2}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("epoch", [2, 3])
def test_a_change_of_weights_acts_from_its_epoch_on_and_not_before(
    teacher_file: Path, change: dict[str, float], weights: dict[str, float], epoch: int
) -> None:
    updates = {"train.epochs": 3, "optimizer.lr": 0.2}
    plain = recorded(run_quietly(tiny_experiment(teacher_file, updates)).folder)
    updates |= {"objective.schedule": [{"epoch": epoch, **change}], "name": "scheduled"}
    found = recorded(run_quietly(tiny_experiment(teacher_file, updates)).folder)
    before = {key for key in plain if key[1] < epoch}
    assert {key: value for key, value in found.items() if key[1] < epoch} == {
        key: plain[key] for key in before
    }
    assert found["train/loss", epoch] != plain["train/loss", epoch]
    for now in (1, 2, 3):
        in_force = WEIGHTS | (weights if now >= epoch else {})
        terms = {name for name, step in found if step == now and name.startswith("train/")}
        assert terms == {"train/loss", *(f"train/{key}" for key, w in in_force.items() if w > 0)}
        total = sum(w * found[f"train/{key}", now] for key, w in in_force.items() if w > 0)
        assert found["train/loss", now] == pytest.approx(total, rel=1e-6)


def test_a_kd_temperature_that_changes_is_that_of_the_later_epochs(teacher_file: Path) -> None:
    """With a network that does not move, each epoch's term is what a run at its temperature has."""
    still = {"optimizer.lr": 1e-30, "objective.method": "kd", "data.augment": "none"}

    def kd(name: str, **updates: Any) -> list[float]:
        dotted = {key.replace("__", "."): value for key, value in updates.items()}
        run = tiny_experiment(teacher_file, {**still, **dotted, "name": name})
        points = recorded(run_quietly(run).folder)
        return [points["train/kd", 1], points["train/kd", 2]]

    (warm, _), (_, cold) = kd("warm"), kd("cold", objective__kd_temperature=2)
    changing = kd("changing", objective__schedule=[{"epoch": 2, "kd_temperature": 2}])
    assert changing == pytest.approx([warm, cold], rel=1e-5)
    assert warm != pytest.approx(cold, rel=1e-3)


def heads(outcome: Outcome, epoch: int) -> dict[str, Tensor]:
    """What DCD trains beside the student, after an epoch."""
    checkpoint = Checkpoints(outcome.folder / "checkpoints", keep=1).load(epoch)
    assert checkpoint is not None
    found = weights(checkpoint.state["distiller"])
    return {key: value for key, value in found.items() if not key.startswith("student.")}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_heads_that_wait_for_their_epoch_or_are_done_stay_what_they_are(
    teacher_file: Path, optimizer: str
) -> None:
    """Without a gradient; momentum and weight decay alone would move them."""
    values = {
        "train.epochs": 4,
        "storage.keep": 4,
        "optimizer.name": optimizer,
        "optimizer.lr": 0.05,
        "optimizer.weight_decay": 0.1,
        "objective.contrast": "sigmoid",
        "objective.dcd_weight": 0,
        "objective.schedule": [{"epoch": 3, "dcd_weight": 1}, {"epoch": 4, "dcd_weight": 0}],
    }
    run = run_quietly(tiny_experiment(teacher_file, values))
    still = {**values, "optimizer.lr": 1e-30, "name": "still"}
    start = heads(run_quietly(tiny_experiment(teacher_file, still)), 4)
    assert len(start) == 6  # two weights and biases, T and b
    first, second, third, fourth = (heads(run, epoch) for epoch in (1, 2, 3, 4))
    for key, value in start.items():
        assert torch.equal(first[key], value)
        assert torch.equal(second[key], value)
        assert not torch.equal(third[key], value)
        assert torch.equal(fourth[key], third[key])


@pytest.mark.parametrize(
    ("method", "schedule", "passes"),
    [
        ("kd", [{"epoch": 2, "kd_weight": 0}], 3),
        ("dcd", [{"epoch": 2, "dcd_weight": 0}], 3),
        ("dcd+kd", [{"epoch": 2, "dcd_weight": 0}], 6),
        ("dcd+kd", [{"epoch": 2, "dcd_weight": 0, "kd_weight": 0}], 3),
    ],
)
def test_the_teacher_rests_in_epochs_that_do_without_it(
    teacher_file: Path,
    on_forward: Callable[[Hook | None], None],
    method: str,
    schedule: list[dict[str, Any]],
    passes: int,
) -> None:
    values = {"objective.method": method, "objective.schedule": schedule}
    experiment = tiny_experiment(teacher_file, values)
    assert _training_passes_of_the_teacher(experiment, on_forward) == passes


def _training_passes_of_the_teacher(
    experiment: Experiment, on_forward: Callable[[Hook | None], None]
) -> int:
    sizes: list[int] = []

    def note(network: Tiny, images: Tensor) -> Tensor:
        assert not (network.role == "teacher" and network.training)
        if network.role == "teacher":
            sizes.append(len(images))
        return images

    on_forward(note)
    run_quietly(experiment)
    on_forward(None)
    # 50 training images are batches of 20, 20 and 10; no other use of the teacher has 10 or 20.
    return len([size for size in sizes if size in (10, 20)])


@pytest.mark.parametrize("method", ["ce", "kd"])
def test_without_dcd_there_are_no_heads_and_no_scalars(teacher_file: Path, method: str) -> None:
    outcome = run_quietly(tiny_experiment(teacher_file, {"objective.method": method}))
    assert all(name.startswith("student.") for name in last_checkpoint(outcome).state["distiller"])
    names = {name for name, _ in recorded(outcome.folder)}
    expected = {"train/loss", "train/ce"} | ({"train/kd"} if method == "kd" else set())
    assert {name for name in names if name.startswith(("train/", "dcd/"))} == expected


@pytest.mark.parametrize(("method", "passes"), [("ce", 0), ("kd", 6), ("dcd", 6), ("dcd+kd", 6)])
def test_the_teacher_runs_on_training_images_only_where_it_is_needed_and_once(
    teacher_file: Path, on_forward: Callable[[Hook | None], None], method: str, passes: int
) -> None:
    experiment = tiny_experiment(teacher_file, {"objective.method": method})
    assert _training_passes_of_the_teacher(experiment, on_forward) == passes


def test_without_a_teacher_section_cross_entropy_needs_none(teacher_file: Path) -> None:
    values = {"objective.method": "ce", "name": "alone"}
    alone = tiny_experiment(teacher_file, values).model_copy(update={"teacher": None})
    outcome = run_quietly(alone)
    assert not any(name.startswith("teacher/") for name in outcome.metrics)
    with_teacher = run_quietly(tiny_experiment(teacher_file, {"objective.method": "ce"}))
    assert with_teacher.metrics["test/loss"] == outcome.metrics["test/loss"]


def _test_images_seen(
    experiment: Experiment, on_forward: Callable[[Hook | None], None]
) -> tuple[list[str], Outcome]:
    """Who was given test images, in order; "train" stands for a run of training steps."""
    dataset = load_dataset(experiment.data)
    assert dataset.test is not None
    mean, std = dataset.mean[0], dataset.std[0]
    other = {image.tobytes() for image in (*dataset.train.images, *dataset.val.images)}
    only_test = {image.tobytes() for image in dataset.test.images} - other
    events: list[str] = []

    def note(network: Tiny, images: Tensor) -> Tensor:
        pixels = ((images * std + mean) * 255).round().to(torch.uint8).numpy()
        if network.training:
            event = "train"
        elif any(image.tobytes() in only_test for image in pixels):
            event = f"{network.role} on test"
        else:
            return images
        if not events or events[-1] != event:
            events.append(event)
        return images

    on_forward(note)
    outcome = run_quietly(experiment)
    on_forward(None)
    return events, outcome


def test_the_test_split_is_looked_at_once_when_training_is_over(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    experiment = tiny_experiment(
        teacher_file, {"data.test_fraction": 0.1, "train.epochs": 3, "data.augment": "none"}
    )
    events, outcome = _test_images_seen(experiment, on_forward)
    assert events[0] == "train"
    assert events[-2:] == ["student on test", "teacher on test"]
    assert set(events[:-2]) == {"train"}
    assert {"test/top1", "test/top1_last", "teacher/test_top1"} <= outcome.metrics.keys()
    assert not any(name.startswith("test/") for name, _ in recorded(outcome.folder))


def test_a_run_that_leaves_the_test_split_alone_reads_nothing_of_it(teacher_file: Path) -> None:
    experiment = tiny_experiment(teacher_file)
    scored = run_quietly(experiment)
    inputs = read_inputs(experiment)
    folder = Folder("alone")
    work, shared = build_work(inputs, inputs.teacher, folder)
    test = inputs.dataset.test
    assert test is not None
    unusable = replace(test, images=test.images[:1, :0])  # no network takes images of no channel
    shared = shared._replace(dataset=replace(inputs.dataset, test=unusable))

    def run(**changes: Any) -> dict[str, float]:
        return run_work(work._replace(**changes), shared, _reporter(folder))

    result = run(uses_test=False)
    assert not any("test" in name for name in result)
    assert result.items() <= scored.metrics.items()
    assert scored.metrics.keys() - result.keys() >= {"test/top1", "test/top1_last"}
    assert folder.read_json("result.json") == result
    assert read_package(folder.location).metrics == result
    with pytest.raises(ValueError, match="channels"):  # or the claim above would be empty
        run(uses_test=True)


def test_a_teacher_that_was_scored_before_is_not_scored_again(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    experiment = tiny_experiment(teacher_file, {"objective.method": "ce"})
    first = run_quietly(experiment)
    known = {k: v for k, v in first.metrics.items() if k.startswith("teacher/val_")}
    assert known.keys() == {"teacher/val_top1", "teacher/val_top5", "teacher/val_loss"}
    inputs = read_inputs(experiment)
    folder = Folder("again")
    work, shared = build_work(inputs, inputs.teacher, folder)
    seen: dict[str, set[int]] = {"teacher": set(), "student": set()}

    def note(network: Tiny, images: Tensor) -> Tensor:
        seen[network.role].add(len(images))
        return images

    on_forward(note)
    again = run_work(
        work._replace(teacher_scores=known, uses_test=False), shared, _reporter(folder)
    )
    on_forward(None)
    num_val = len(inputs.dataset.val.labels)
    assert num_val in seen["student"]
    assert seen["teacher"] <= {1, 2}  # a network is tried on that many when it is built
    assert recorded(folder) == recorded(first.folder)
    assert again.items() <= first.metrics.items()
    assert known.items() <= again.items()


def test_a_teacher_scored_before_must_still_be_good_enough(teacher_file: Path) -> None:
    inputs = read_inputs(tiny_experiment(teacher_file, {"teacher.min_top1": 60}))
    folder = Folder("run")
    work, shared = build_work(inputs, inputs.teacher, folder)
    scores = {"teacher/val_top1": 59.5, "teacher/val_loss": 1.0}
    with pytest.raises(UserError, match=r"validation top-1 is 59\.50 %, below min_top1 60 %"):
        run_work(work._replace(teacher_scores=scores), shared, _reporter(folder))
    scores["teacher/val_top1"] = 61.0
    run_work(work._replace(teacher_scores=scores), shared, _reporter(folder))
    assert recorded(folder)["teacher/val_top1", 0] == 61.0


def _reporter(folder: Folder) -> ProcessReporter:
    return ProcessReporter(Journal(folder), device=torch.device("cpu"))


def test_the_student_that_is_exported_is_the_best_on_validation(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    """From epoch 3 on the images are dark, so that the student gets worse."""
    steps = 0

    def darken(network: Tiny, images: Tensor) -> Tensor:
        nonlocal steps
        steps += network.training
        dark = network.training and steps > 6 * NUM_STEPS
        return -30 * images if dark else images

    on_forward(darken)
    outcome = run_quietly(
        tiny_experiment(
            teacher_file,
            {
                "train.epochs": 9,
                "storage.keep": 1,
                "objective.method": "ce",
                "optimizer.lr": 0.3,
                "student.args": {"width": 12},
            },
        )
    )
    on_forward(None)
    points = recorded(outcome.folder)
    top1 = [points["val/top1", epoch] for epoch in range(1, 10)]
    best = int(outcome.metrics["best_epoch"])
    assert best == 1 + top1.index(max(top1))
    assert best < 9
    assert outcome.metrics["val/top1"] == max(top1) > top1[-1] == outcome.metrics["val/top1_last"]
    checkpoints = Checkpoints(outcome.folder / "checkpoints", keep=1)
    assert checkpoints.epochs() == [best, 9]

    # An evaluation of our own, from the exported weights, on raw images.
    dataset = load_dataset(tiny_experiment(teacher_file).data)
    exported = load_student(outcome.folder.location, with_normalization=True)
    for split, name in ((dataset.val, "val/top1"), (dataset.test, "test/top1")):
        assert split is not None
        with torch.no_grad():
            predicted = exported(torch.tensor(split.images)).argmax(1)
        correct = (predicted == torch.tensor(split.labels)).double().mean()
        assert outcome.metrics[name] == pytest.approx(100 * float(correct))
    assert outcome.metrics["test/top1"] != outcome.metrics["test/top1_last"]


def test_of_equally_good_epochs_the_first_is_the_best(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    on_forward(lambda network, images: images * 0)  # all images are one: one class is predicted
    outcome = run_quietly(tiny_experiment(teacher_file, {"optimizer.lr": 1e-30, "train.epochs": 3}))
    points = recorded(outcome.folder)
    assert points["val/top1", 1] == points["val/top1", 2] == points["val/top1", 3]
    assert outcome.metrics["best_epoch"] == 1


def test_metrics_of_an_epoch_are_means_over_its_images(
    teacher_file: Path, on_forward: Callable[[Hook | None], None]
) -> None:
    """With a network that does not move, cross entropy over the epoch is that over all images."""
    experiment = tiny_experiment(
        teacher_file,
        {
            "objective.method": "ce",
            "optimizer.lr": 1e-30,
            "train.epochs": 1,
            "data.augment": "none",
        },
    )
    batches: list[Tensor] = []

    def keep(network: Tiny, images: Tensor) -> Tensor:
        if network.training:
            batches.append(images.clone())
        return images

    on_forward(keep)
    outcome = run_quietly(experiment)
    on_forward(None)
    assert [len(batch) for batch in batches] == [20, 20, 10]
    points = recorded(outcome.folder)
    assert points["train/loss", 1] == points["train/ce", 1]

    # By hand, from the exported student in training mode, batch by batch.
    dataset = load_dataset(experiment.data)
    images = normalize(torch.tensor(dataset.train.images), mean=dataset.mean, std=dataset.std)
    labels_of = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(images, dataset.train.labels, strict=True)
    }
    student = load_student(outcome.folder.location).train()
    total = 0.0
    for batch in batches:
        log_p = student(batch).log_softmax(1)
        for row, image in enumerate(batch):
            total -= float(log_p[row, labels_of[image.numpy().tobytes()]].detach())
    assert points["train/ce", 1] == pytest.approx(total / 50, rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_compile_reaches_both_networks(
    teacher_file: Path, on_forward: Callable[[Hook | None], None], role: str
) -> None:
    def blacken_when_compiled(network: Tiny, images: Tensor) -> Tensor:
        return images * 0 if network.role == role and torch.compiler.is_compiling() else images

    on_forward(blacken_when_compiled)
    losses = []
    for compiled in (False, True):
        torch.compiler.reset()
        updates = {"name": f"compiled-{compiled}", "train.compile": compiled, "train.epochs": 1}
        points = recorded(run_quietly(tiny_experiment(teacher_file, updates)).folder)
        losses.append(points["train/kd", 1])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)

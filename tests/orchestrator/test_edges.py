"""Where training goes wrong at its edges: broken gradients, tiny batches, a full disk."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from tiny_experiment import (
    run_quietly,
    save_teacher,
    tiny_experiment,
    tiny_values,
    write_experiment,
)
from tiny_networks import Tiny
from torch import Tensor, nn

from dcd_core import FeatureModel
from orchestrator.build import build_distiller
from orchestrator.checkpoints import Best, Checkpoint, Checkpoints
from orchestrator.data import Dataset, ImageSet
from orchestrator.errors import Diverged, UserError
from orchestrator.experiment_file import changed
from orchestrator.frozen_teacher import check_teacher
from orchestrator.inputs import read_inputs
from orchestrator.spec import ObjectiveSpec
from orchestrator.storage import Folder

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


@pytest.fixture(autouse=True)
def _in_a_workplace(workplace: Path) -> None:
    pass


@pytest.fixture
def broken_gradient(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the student's gradient NaN from a training step on, while its loss stays finite."""

    def install(first_step: int) -> None:
        steps = []

        def hook(network: Tiny, images: Tensor) -> Tensor:
            if network.role == "teacher" or not network.training:
                return images
            steps.append(True)
            if len(steps) < first_step:
                return images
            # The square root's gradient at 0 is infinite, and infinite times 0 is NaN.
            return images + (network.conv.weight.sum() * 0).abs().sqrt()

        monkeypatch.setattr(tiny_networks, "on_forward", hook)

    return install


def test_weights_that_the_last_step_breaks_are_neither_kept_nor_the_best(
    teacher_file: Path, broken_gradient: Callable[[int], None]
) -> None:
    broken_gradient(6)  # the last of two epochs of three steps
    with pytest.raises(Diverged, match=r"weight was not finite after epoch 2; .*epoch 1 is kept"):
        run_quietly(tiny_experiment(teacher_file))
    checkpoints = Checkpoints(Folder(str(Path("dcd_runs/tiny/checkpoints").absolute())), keep=2)
    assert checkpoints.epochs() == [1]
    kept = checkpoints.latest()
    assert kept is not None
    assert all(value.isfinite().all() for value in kept.state["distiller"].values())


def test_fp16_gradients_that_overflow_at_every_scale_end_the_run(
    teacher_file: Path, broken_gradient: Callable[[int], None]
) -> None:
    broken_gradient(1)
    updates = {"train.precision": "fp16", "train.batch_size": 2, "train.epochs": 1}
    with pytest.raises(Diverged, match="fp16 gradients overflow at any scale in epoch 1"):
        run_quietly(tiny_experiment(teacher_file, updates))


def test_a_full_disk_ends_the_run_with_a_sentence_and_room_lets_it_go_on(
    teacher_file: Path, workplace: Path
) -> None:
    spec = write_experiment(workplace / "run.yaml", tiny_values(teacher_file))
    command = [sys.executable, "-m", "orchestrator", "distill", str(spec)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)])}

    def small_files_only() -> None:  # the same error as of a full disk, without one
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    full = subprocess.run(
        command, env=environment, preexec_fn=small_files_only, capture_output=True, text=True
    )
    assert full.returncode == 1
    assert "the checkpoint of epoch 1 could not be written" in full.stderr
    assert "Traceback" not in full.stderr
    roomy = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert roomy.returncode == 0, roomy.stderr
    assert Checkpoints(Folder(str(workplace / "dcd_runs/tiny/checkpoints")), keep=2).latest()


@pytest.mark.parametrize(
    ("limit", "batch_size", "fits"), [(41, 20, False), (42, 20, True), (40, 20, True)]
)
def test_a_last_batch_of_one_is_refused_where_batch_norm_cannot_take_it(
    teacher_file: Path, limit: int, batch_size: int, fits: bool
) -> None:
    spec = tiny_experiment(
        teacher_file,
        {
            "data.limit": limit,
            "train.batch_size": batch_size,
            "student.source": "test_edges:flat_network",
        },
    )
    if fits:
        assert read_inputs(spec).dataset.train.labels.shape == (limit,)
    else:
        with pytest.raises(
            UserError, match=r"cannot run on a batch of 1 images.*train\.batch_size"
        ):
            read_inputs(spec)


def test_an_empty_share_is_refused_where_the_network_cannot_take_it(teacher_file: Path) -> None:
    updates = {
        "data.limit": 41,
        "train.batch_size": 20,
        "scaling.workers": 2,
        "student.source": "test_edges:viewing_network",
    }
    with pytest.raises(UserError, match="cannot run on a batch of 0 images"):
        read_inputs(tiny_experiment(teacher_file, updates))
    alone = {**updates, "scaling.workers": 1}
    assert read_inputs(tiny_experiment(teacher_file, alone)).teacher is not None


def flat_network(num_classes: int) -> nn.Module:
    """Normalises a vector, which takes two images."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)
    )


class _Viewing(nn.Module):
    """Reshapes in a way that is ambiguous for no image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.view(images.size(0), -1))


def viewing_network(num_classes: int) -> nn.Module:
    """The network above."""
    return _Viewing(num_classes)


@pytest.mark.parametrize(
    ("counts", "top1", "passes"),
    [
        ((500, 500), 50.0, False),
        ((500, 500), 54.0, False),  # three standard errors are 4.7 points
        ((500, 500), 56.0, True),
        ((5, 4), 100.0, True),  # where three standard errors would ask for 105 %
        ((90, 10), 97.0, True),
        ((90, 10), 90.0, False),
        ((100,) * 10, 12.0, False),
        ((100,) * 10, 14.0, True),
    ],
)
def test_chance_is_the_most_frequent_class_and_a_margin(
    counts: tuple[int, ...], top1: float, passes: bool
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    images = np.zeros((len(labels), 1, 2, 2), dtype=np.uint8)
    split = ImageSet(images, labels, np.arange(len(labels), dtype=np.int64))
    names = tuple(map(str, range(len(counts))))
    dataset = Dataset(split, split, split, names, len(counts), "0", 0, (0.0,), (1.0,))
    if passes:
        check_teacher(top1, dataset, min_top1=None)
    else:
        with pytest.raises(UserError, match="below chance level"):
            check_teacher(top1, dataset, min_top1=None)
        check_teacher(top1, dataset, min_top1=0.0)


def test_a_torn_newest_checkpoint_leaves_the_one_before_with_its_own_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), keep=2)
    for epoch, best in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 5)):
        checkpoints.save(Checkpoint(epoch, Best(best, 10.0 * best), [], {}))
    assert checkpoints.epochs() == [3, 4, 5]
    (tmp_path / "epoch_0005.pt").write_bytes(b"torn")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.epoch == 4
    assert checkpoints.load(latest.best.epoch) is not None


def test_the_heads_do_not_repeat_the_students_first_random_numbers() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 10))
    student = FeatureModel(network, images_example=torch.zeros(2, 1, 4, 4))
    spec = ObjectiveSpec.model_validate({"projection_dim": 16})
    distiller = build_distiller(student, 16, spec, micro_batch_size=8, seed=3)
    assert distiller.student_head is not None
    first, head = network[1].weight.flatten(), distiller.student_head.weight.flatten()
    correlation = torch.corrcoef(torch.stack([first, head]).detach())[0, 1]
    assert abs(float(correlation)) < 0.25  # four standard errors of 256 independent draws


def test_another_method_brings_its_own_weights(teacher_file: Path) -> None:
    spec = tiny_experiment(teacher_file, {"objective.kd_weight": 0.25})
    kd = changed(spec, {"objective.method": "kd"}).objective
    assert (kd.kd_weight, kd.dcd_weight, kd.consistency_weight) == (0.25, 0.0, 0.0)
    again = changed(changed(spec, {"objective.method": "ce", "objective.kd_weight": None}),
                    {"objective.method": "dcd+kd"}).objective  # fmt: skip
    assert (again.kd_weight, again.dcd_weight, again.consistency_weight) == (1.0, 1.0, 0.5)


@pytest.mark.parametrize("field", ["split_seed", "val_fraction", "test_fraction"])
def test_a_fitted_teacher_may_not_cut_the_students_images_otherwise(
    teacher_file: Path, field: str
) -> None:
    value = 7 if field == "split_seed" else 0.3
    updates = {
        "teacher": {"source": "tiny_networks:network", "fit": {"epochs": 1, "data": {field: value}}}
    }
    with pytest.raises(UserError, match=rf"teacher\.fit\.data\.{field}: .* validation or test"):
        read_inputs(tiny_experiment(teacher_file, updates))


@pytest.mark.parametrize("num_classes", [7, 12])
def test_a_teacher_of_other_classes_teaches_by_its_features_alone(
    tmp_path: Path, num_classes: int
) -> None:
    teacher = save_teacher(tmp_path, num_classes=num_classes)
    updates = {
        "teacher.num_classes": num_classes,
        "teacher.min_top1": None,
        "objective.method": "dcd",
    }
    spec = tiny_experiment(teacher, updates)
    outcome = run_quietly(spec)
    assert outcome.metrics["test/top1"] >= 0
    assert not [name for name in outcome.metrics if name.startswith("teacher/")]
    assert any("only its features are used" in note for note in read_inputs(spec).notes)
    with pytest.raises(UserError, match=r"teacher\.min_top1: .* drop min_top1"):
        read_inputs(tiny_experiment(teacher, {**updates, "teacher.min_top1": 50.0}))
    with pytest.raises(UserError, match="kd_weight: 0"):
        read_inputs(tiny_experiment(teacher, {**updates, "objective.method": "dcd+kd"}))


def test_a_run_does_not_go_on_with_another_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_teacher(tmp_path, seed=0)
    other = save_teacher(tmp_path, seed=1)
    broken = {"count": 0}

    def stop_in_the_second_epoch(network: Tiny, images: Tensor) -> Tensor:
        broken["count"] += network.training
        if broken["count"] > 3:
            raise KeyboardInterrupt
        return images

    monkeypatch.setattr(tiny_networks, "on_forward", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        run_quietly(tiny_experiment(file))
    monkeypatch.setattr(tiny_networks, "on_forward", None)
    kept = file.read_bytes()
    file.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="started on other teacher's weights"):
        run_quietly(tiny_experiment(file))
    file.write_bytes(kept)
    assert run_quietly(tiny_experiment(file)).metrics["best_epoch"] in (1.0, 2.0)


def test_printed_commands_find_a_run_that_lies_elsewhere(
    teacher_file: Path, workplace: Path, tmp_path: Path
) -> None:
    values = tiny_values(teacher_file, {"storage.path": str(tmp_path / "other place")})
    spec = write_experiment(workplace / "run.yaml", values)
    command = [sys.executable, "-m", "orchestrator", "distill"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)])}
    environment |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    first = subprocess.run(
        [*command, str(spec), "--set", "tracking.enabled=true"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert f"`dcd sync tiny --storage '{tmp_path}/other place'` sends it" in first.stdout
    assert "tiny: tracked at http://127.0.0.1:9" in first.stderr
    sync = [sys.executable, "-m", "orchestrator", "sync", "tiny", "--storage", "other place"]
    again = subprocess.run(sync, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 1
    assert "tiny: 0 points, not sent yet" in again.stdout


@pytest.mark.parametrize("handler", ["ours", "ray's"])
def test_a_signal_that_python_drops_is_delivered_again(handler: str) -> None:
    """What a handler raises within a callback around a fork is only printed by Python."""
    program = """
        import os, signal, sys, time
        from orchestrator import cli

        struck = []

        def strike():
            if not struck:
                struck.append(True)
                if "ray" in HANDLER:  # it replaces ours while Ray starts
                    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
                os.kill(os.getpid(), signal.SIGTERM)

        @cli.app.command()
        def forks():
            os.register_at_fork(before=strike)
            if os.fork() == 0:
                os._exit(0)
            time.sleep(20)
            print("the signal was lost")

        sys.argv = ["dcd", "forks"]
        cli.main()
    """
    ended = subprocess.run(
        [sys.executable, "-c", f"HANDLER = {handler!r}\n{textwrap.dedent(program)}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (143, ""), ended.stderr
    assert "Exception ignored" not in ended.stderr

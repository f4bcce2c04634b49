"""What a user can get wrong ends with one clear sentence and code 2, and nothing is left behind."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_networks
import torch
from PIL import Image
from rich.console import Console
from tiny_experiment import save_teacher, tiny_values, write_experiment

from dcd_core.models import build_model
from orchestrator.checkpoints import Checkpoints
from orchestrator.cli import main
from orchestrator.progress import Display
from orchestrator.storage import Folder

REPOSITORY = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error without its prefix; there must be exactly one, and no traceback."""
        assert "Traceback" not in self.err
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        assert self.err.endswith("\n")
        before, _, message = self.err.partition("error: ")
        assert "error" not in before.lower()
        return message.rstrip("\n")


@pytest.fixture
def dcd(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """Runs the command line in this process."""
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["dcd", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return Ended(int(caught.value.code or 0), *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def listing(*folders: Path) -> dict[str, bytes | None]:
    """All that lies in folders: files with their content."""
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def refuse(
    dcd: Callable[..., Ended], file: Path | str, *overrides: str, command: str = "distill"
) -> str:
    """The sentence of a refusal that started and wrote nothing, under the working directory's
    parent."""
    root = Path.cwd().parent
    before = listing(root)
    options = [part for override in overrides for part in ("--set", override)]
    ended = dcd(command, str(file), *options)
    assert ended.code == 2, ended
    assert ended.out == ""
    assert listing(root) == before
    return ended.sentence


@pytest.fixture
def experiment(workplace: Path, teacher_file: Path) -> Callable[..., Path]:
    """Writes the tiny experiment, changed, as a file."""

    def write(updates: dict[str, Any] | None = None) -> Path:
        return write_experiment(workplace / "e.yaml", tiny_values(teacher_file, updates))

    return write


def picture(size: tuple[int, int] = (8, 8), value: int = 100, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image = Image.effect_noise(size, 50).point(lambda v: (v + value) % 256)
    image.save(stream, kind)
    return stream.getvalue()


def write_parquet(path: Path, labels: list[Any], images: list[Any] | None = None) -> Path:
    images = images or [picture(value=n) for n in range(len(labels))]
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    pq.write_table(pa.table({"image": images, "label": labels}, schema=schema), path)
    return path


FIT = {"teacher.checkpoint": None, "teacher.fit": {"epochs": 1, "batch_size": 20}}
PARQUET = {"data.source": "parquet", "data.limit": None, "data.test_fraction": 0.3}


# --- the experiment file ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["distill", "plan"])
def test_a_good_file_with_one_bad_key_names_the_nearest(
    dcd: Any, experiment: Any, command: str
) -> None:
    file = experiment({"objective.kd_wieght": 1})
    assert refuse(dcd, file, command=command) == (
        f"{file}: objective.kd_wieght: unknown key 'kd_wieght'; did you mean 'kd_weight'?"
    )


def test_an_override_is_checked_like_the_file(dcd: Any, experiment: Any) -> None:
    file = experiment()
    assert "did you mean 'epochs'?" in refuse(dcd, file, "train.epoch=3")
    assert "train.epochs: should be a valid integer" in refuse(dcd, file, "train.epochs=many")
    assert "expected PATH=VALUE" in refuse(dcd, file, "train.epochs")


def test_a_missing_experiment_file_is_named(dcd: Any, workplace: Path) -> None:
    assert refuse(dcd, "nowhere.yaml") == "nowhere.yaml: no such experiment file"


@pytest.mark.parametrize("name", ["a/b", "../a", "two words", "x" * 300, ""])
def test_names_that_are_no_folder_names_are_refused(dcd: Any, experiment: Any, name: str) -> None:
    message = refuse(dcd, experiment({"name": name}))
    assert "name: should match pattern" in message
    assert len(message) < 400


def test_a_batch_that_cannot_be_shared_out_is_refused(dcd: Any, experiment: Any) -> None:
    message = refuse(dcd, experiment({"train.batch_size": 20, "train.accumulate": 3}))
    assert "train.batch_size 20 is not divisible" in message
    assert "use 21" in message


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (3, "objective.schedule: should be a valid tuple, found 3"),
        ([3], "objective.schedule: should be a mapping of keys to values, found 3"),
        ([{"kd_weight": 1}], "objective.schedule.epoch: is missing"),
        (
            [{"epoch": 1, "kd_weight": 0}],
            "objective.schedule.epoch: should be greater than or equal to 2, found 1",
        ),
        (
            [{"epoch": 2, "kd_wieght": 0}],
            "objective.schedule.kd_wieght: unknown key 'kd_wieght'; did you mean 'kd_weight'?",
        ),
        (
            [{"epoch": 2}],
            "objective.schedule: the change at epoch 2 changes nothing: give one of ce_weight, "
            "kd_weight, dcd_weight, consistency_weight, method_weight, kd_temperature",
        ),
        (
            [{"epoch": 3, "kd_weight": 0}],
            "objective.schedule: the change at epoch 3 comes after the last of 2 epochs: drop it, "
            "or raise train.epochs",
        ),
    ],
)
def test_a_schedule_of_weights_that_cannot_be_is_refused(
    dcd: Any, experiment: Any, schedule: Any, told: str
) -> None:
    file = experiment({"objective.schedule": schedule})
    assert refuse(dcd, file) == f"{file}: {told}"


def test_no_file_no_run_or_both_are_refused(dcd: Any, experiment: Any) -> None:
    file = experiment()
    for arguments in (["distill"], ["distill", str(file), "--resume", "tiny"]):
        ended = dcd(*arguments)
        assert ended.code == 2
        assert ended.sentence == "give an experiment file, or --resume RUN: exactly one of them"


def test_what_the_command_line_itself_does_not_know_ends_with_2(dcd: Any, workplace: Path) -> None:
    for arguments in (["distil"], ["distill", "--sett", "a=b"], ["ui", "--port", "0"]):
        ended = dcd(*arguments)
        assert ended.code == 2
        assert "Traceback" not in ended.err
    assert os.listdir(workplace) == []


# --- resuming -----------------------------------------------------------------------------------


def test_an_unknown_run_is_told(dcd: Any, workplace: Path) -> None:
    ended = dcd("distill", "--resume", "other")
    assert ended.code == 2
    assert ended.sentence == f"no run 'other' in {workplace}/dcd_runs; it holds no runs"
    assert os.listdir(workplace) == []


@pytest.mark.parametrize(
    ("option", "remedy"), [(["--set", "seed=1"], "drop --set"), (["--new"], "give one of them")]
)
def test_resuming_takes_no_changes(
    dcd: Any, workplace: Path, option: list[str], remedy: str
) -> None:
    ended = dcd("distill", "--resume", "other", *option)
    assert ended.code == 2
    assert remedy in ended.sentence


def test_a_run_of_another_spec_is_refused_and_left_alone(dcd: Any, experiment: Any) -> None:
    file = experiment({"train.epochs": 1})
    assert dcd("distill", str(file)).code == 0
    message = refuse(dcd, file, "optimizer.lr=0.3")
    assert "optimizer.lr: 0.05 -> 0.3" in message
    assert "--new" in message


def test_a_run_whose_images_changed_is_refused_and_left_alone(
    dcd: Any, experiment: Any, tmp_path: Path
) -> None:
    data = write_parquet(tmp_path / "d.parquet", [n % 2 for n in range(40)])
    teacher = save_teacher(tmp_path, num_classes=2)
    file = experiment(
        {**PARQUET, "data.path": str(data), "teacher.checkpoint": str(teacher), "train.epochs": 3}
    )
    tiny_networks.on_forward = _interrupt_once(file.parent / "dcd_runs/tiny/checkpoints")
    try:
        with pytest.raises(_Stop):
            dcd("distill", str(file))
    finally:
        tiny_networks.on_forward = None
    assert Checkpoints(Folder("dcd_runs/tiny/checkpoints"), keep=1).epochs() == [1]
    write_parquet(data, [n % 2 for n in range(42)])
    message = refuse(dcd, file)
    assert "run 'tiny' was started on other images (fingerprint" in message
    assert "--new" in message


class _Stop(BaseException):
    """Ends a run as a crash does."""


def _interrupt_once(checkpoints: Path) -> Any:
    def stop_after_an_epoch(network: Any, images: Any) -> Any:
        if network.training and checkpoints.exists() and list(checkpoints.glob("*.json")):
            raise _Stop
        return images

    return stop_after_an_epoch


def test_a_stopped_command_prints_the_one_that_goes_on(
    experiment: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it was stopped while the teacher was trained, and under the name of --new."""
    from orchestrator.distillation import distill
    from orchestrator.errors import Interrupted
    from orchestrator.experiment_file import load_experiment
    from orchestrator.runs import find_run

    def stop_in_training(network: Any, images: Any) -> Any:
        if network.training:
            raise Interrupted(signal.SIGTERM)
        return images

    fitted = load_experiment(experiment(FIT))
    monkeypatch.setattr(tiny_networks, "on_forward", stop_in_training)
    for name in ("tiny", "tiny-2"):
        with pytest.raises(Interrupted) as caught:
            distill(fitted, new=name == "tiny-2", display=Display(Console(file=io.StringIO())))
        assert caught.value.run == name
        assert find_run(name, Folder("dcd_runs")).name == name
    monkeypatch.setattr(tiny_networks, "on_forward", None)
    resumed = find_run("tiny-2", Folder("dcd_runs"))
    assert distill(resumed, display=Display(Console(file=io.StringIO()))).run == "tiny-2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_program_with_its_code_and_the_printed_command_goes_on(
    experiment: Any, workplace: Path, number: signal.Signals, code: int
) -> None:
    file = experiment({**FIT, "teacher.fit.epochs": 100_000, "storage.path": "my runs"})
    program = [sys.executable, "-m", "orchestrator"]
    paths = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*program, "distill", str(file)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 1/"):
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(30) == code
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    command = rest.strip().splitlines()[-1]
    assert command == (
        f"stopped; go on with: dcd distill --resume tiny --storage '{workplace}/my runs'"
    )
    resume = shlex.split(command.partition("dcd distill ")[2])
    stopped = Folder(f"{workplace}/my runs").names()
    assert stopped[1:] == ["tiny"]
    again = subprocess.Popen(
        [*program, "distill", *resume], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert again.stderr is not None
        assert any(f"{stopped[0]}: going on after epoch" in line for line in again.stderr)
    finally:
        again.kill()
        again.wait()
        again.stderr.close()


# --- data ---------------------------------------------------------------------------------------


def test_missing_data_is_named_with_its_setting(dcd: Any, experiment: Any, tmp_path: Path) -> None:
    file = experiment({**PARQUET, "data.path": str(tmp_path / "no.parquet")})
    assert f"{tmp_path}/no.parquet" in refuse(dcd, file)
    file = experiment({"data.source": "imagefolder", "data.path": "pictures", "data.limit": None})
    message = refuse(dcd, file)
    assert message.startswith(f"data.path: {Path.cwd()}/pictures does not exist")
    file = experiment({"data.source": "cifar10", "data.path": "c", "data.test_fraction": None})
    assert f"{Path.cwd()}/c" in refuse(dcd, file)


def test_no_images_are_told(dcd: Any, experiment: Any, tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "d.parquet", [])
    assert "holds no images" in refuse(dcd, experiment({**PARQUET, "data.path": str(data)}))
    (tmp_path / "folder" / "cats").mkdir(parents=True)
    message = refuse(
        dcd,
        experiment({"data.source": "imagefolder", "data.path": str(tmp_path / "folder")}),
    )
    assert f"class folder {tmp_path}/folder/cats holds no images" in message


@pytest.mark.parametrize("classes", ["[yes, no]", "cat,dog", "[cat]"])
def test_what_is_no_list_of_classes_is_told_in_one_sentence(
    dcd: Any, experiment: Any, classes: str
) -> None:
    message = refuse(dcd, experiment(), f"data.classes={classes}")
    assert message.endswith(
        "data.classes: should be a list of at least two names or numbers, such as [cat, dog]; "
        "quote names such as 'yes' and 'no'"
    )


def test_one_class_is_told(dcd: Any, experiment: Any, tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "d.parquet", [0] * 20)
    message = refuse(dcd, experiment({**PARQUET, "data.path": str(data)}))
    assert "all 20 training images are of class '0': at least two classes are needed" in message


def test_a_label_outside_the_range_is_told_with_its_row(
    dcd: Any, experiment: Any, tmp_path: Path
) -> None:
    for wrong in (2, -1):
        labels = [n % 2 for n in range(20)]
        labels[7] = wrong
        data = write_parquet(tmp_path / "d.parquet", labels)
        file = experiment({**PARQUET, "data.path": str(data), "data.num_classes": 2})
        message = refuse(dcd, file)
        assert f"label {wrong} is outside 0..1" in message
        assert "d.parquet" in message
        assert "7" in message


def test_mixed_sizes_without_resize_are_told(dcd: Any, experiment: Any, tmp_path: Path) -> None:
    images = [picture((8, 8) if n % 2 else (9, 8)) for n in range(40)]
    data = write_parquet(tmp_path / "d.parquet", [n // 20 for n in range(40)], images)
    assert "data.resize" in refuse(dcd, experiment({**PARQUET, "data.path": str(data)}))


def test_a_corrupt_jpeg_is_named_and_skipped_only_on_request(
    dcd: Any, experiment: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            (folder / label / f"{number:02}.jpg").write_bytes(picture(value=number, kind="JPEG"))
    whole = (folder / "cats" / "07.jpg").read_bytes()
    (folder / "cats" / "07.jpg").write_bytes(whole[: len(whole) // 3])
    file = experiment(
        {
            "data.source": "imagefolder",
            "data.path": str(folder),
            "data.limit": None,
            "data.test_fraction": 0.3,
            "teacher.checkpoint": str(save_teacher(tmp_path, num_classes=2)),
            "train.epochs": 1,
        }
    )
    message = refuse(dcd, file)
    assert f"{folder}/cats/07.jpg" in message
    assert "on_error" in message
    ended = dcd("distill", str(file), "--set", "data.on_error=skip")
    assert ended.code == 0, ended
    assert "note: 1 images could not be decoded and are left out" in ended.err


def test_more_images_than_there_are_cannot_be_asked_for(dcd: Any, experiment: Any) -> None:
    assert "data.limit 5,000 is more than" in refuse(dcd, experiment({"data.limit": 5000}))


def test_data_without_a_test_split_asks_for_one(dcd: Any, experiment: Any) -> None:
    assert "set data.test_fraction" in refuse(dcd, experiment({"data.test_fraction": None}))


def test_normalisation_of_other_channels_is_told(dcd: Any, experiment: Any) -> None:
    normalize = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    for section in ("data", "teacher"):
        message = refuse(dcd, experiment({f"{section}.normalize": normalize}))
        assert f"{section}.normalize" in message
        assert "1 channel" in message


# --- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_missing_checkpoint_is_named_with_its_setting(
    dcd: Any, experiment: Any, tmp_path: Path, role: str
) -> None:
    message = refuse(dcd, experiment({f"{role}.checkpoint": str(tmp_path / "no.pt")}))
    assert message.startswith(f"{role}.checkpoint: {tmp_path}/no.pt")


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_checkpoint_of_another_architecture_is_told(
    dcd: Any, experiment: Any, tmp_path: Path, role: str
) -> None:
    path = tmp_path / "resnet8.pt"
    torch.save(build_model("resnet8", num_classes=10).state_dict(), path)
    message = refuse(dcd, experiment({f"{role}.checkpoint": str(path)}))
    assert message.startswith(f"{role}.checkpoint: {path}")
    assert "missing" in message
    assert "unexpected" in message


class _Malicious:
    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._target),)


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("bare", [True, False], ids=["pickle", "torch.save"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    dcd: Any, experiment: Any, tmp_path: Path, role: str, bare: bool
) -> None:
    path, proof = tmp_path / "evil.pt", tmp_path / "it-ran"
    if bare:
        path.write_bytes(pickle.dumps(_Malicious(proof), protocol=2))
    else:
        torch.save({"state_dict": {"w": torch.ones(1)}, "extra": _Malicious(proof)}, path)
    message = refuse(dcd, experiment({f"{role}.checkpoint": str(path)}))
    assert message.startswith(f"{role}.checkpoint: {path}: refused")
    assert "mkdir" in message
    assert not proof.exists()


def test_other_classes_than_the_datas_are_refused_with_kd_alone(
    dcd: Any, experiment: Any, tmp_path: Path
) -> None:
    twelve = {
        "teacher.checkpoint": str(save_teacher(tmp_path, num_classes=12)),
        "teacher.num_classes": 12,
        "train.epochs": 1,
    }
    message = refuse(dcd, experiment(twelve))
    assert "it has 12 classes and the data 10" in message
    assert "objective.kd_weight: 0" in message
    ended = dcd("distill", str(experiment({**twelve, "objective.method": "dcd"})))
    assert ended.code == 0, ended
    assert "note: " in ended.err
    assert "12" in ended.err


def test_other_classes_are_refused_when_a_later_epoch_compares_them(
    dcd: Any, experiment: Any, tmp_path: Path
) -> None:
    teacher = save_teacher(tmp_path, num_classes=12)
    values = {
        "teacher.checkpoint": str(teacher),
        "teacher.num_classes": 12,
        "teacher.min_top1": None,
        "objective.kd_weight": 0,
    }
    message = refuse(
        dcd, experiment({**values, "objective.schedule": [{"epoch": 2, "kd_weight": 1}]})
    )
    assert message.startswith("teacher: it has 12 classes and the data 10")
    assert dcd("plan", str(experiment(values))).code == 0


def test_a_teacher_without_weights_is_told(dcd: Any, experiment: Any) -> None:
    message = refuse(dcd, experiment({"teacher.checkpoint": None}))
    assert "give teacher.checkpoint, teacher.weights or teacher.fit" in message


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("resnet9", "did you mean 'resnet"),
        ("torchvision:resnet19", "did you mean 'resnet18'"),
        ("tiny_network:network", "no module 'tiny_network'"),
        ("tiny_networks:netwrk", "did you mean 'network'"),
        ("tiny_networks:on_forward", "is not a function"),
    ],
)
def test_an_unknown_network_is_told_with_the_nearest(
    dcd: Any, experiment: Any, source: str, found: str
) -> None:
    message = refuse(dcd, experiment({"student.source": source}))
    assert message.startswith("student.source: ")
    assert found in message


def test_args_that_a_network_does_not_take_are_told(dcd: Any, experiment: Any) -> None:
    message = refuse(dcd, experiment({"student.args": {"widht": 3}}))
    assert message.startswith("student.source: tiny_networks:network: ")
    assert "widht" in message
    assert "width" in message


def test_an_unknown_feature_layer_is_told_with_the_nearest(dcd: Any, experiment: Any) -> None:
    message = refuse(dcd, experiment({"objective.feature_layer": {"student": "hiden"}}))
    assert "'hiden' is not a module" in message
    assert "did you mean 'hidden'?" in message


def test_grey_images_for_a_colour_network_are_told_with_the_remedy(
    dcd: Any, experiment: Any
) -> None:
    message = refuse(dcd, experiment({"student": {"source": "torchvision:shufflenet_v2_x0_5"}}))
    assert "data.grey_to_rgb: true" in message


# --- the teacher's own training -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"limt": 3}, "teacher.fit: data.limt: unknown key 'limt'; did you mean 'limit'?"),
        ({"limit": "all"}, "teacher.fit: data.limit: "),
        ({"labels_per_class": 3}, "limit and labels_per_class exclude each other"),
        ({"limit": 5000}, "data.limit 5,000 is more than"),
        ({"source": "parquet"}, "path is needed for source 'parquet'"),
        ({"grey_to_rgb": True}, "its images have 3 channels and the student's 1"),
    ],
)
def test_mistakes_in_the_teachers_data_are_told_before_anything_starts(
    dcd: Any, experiment: Any, data: dict[str, Any], found: str
) -> None:
    assert found in refuse(dcd, experiment({**FIT, "teacher.fit.data": data}))


def test_a_fit_batch_that_cannot_be_shared_out_is_told(dcd: Any, experiment: Any) -> None:
    file = experiment({**FIT, "teacher.fit.batch_size": 3, "scaling.workers": 2})
    message = refuse(dcd, file)
    assert message.startswith("teacher.fit: train.batch_size 3 is not divisible")


def test_a_teacher_below_what_was_asked_for_is_told_before_any_epoch(
    dcd: Any, experiment: Any
) -> None:
    """The workers find it out, so the run's folder is there: without an epoch, and replaced by the
    corrected experiment."""
    file = experiment({"teacher.min_top1": 90, "train.epochs": 1})
    ended = dcd("distill", str(file))
    assert ended.code == 2
    assert ended.sentence.startswith("teacher: its validation top-1 is ")
    assert "below min_top1 90 %" in ended.sentence
    assert "teacher.normalize, the order of the classes and the checkpoint" in ended.sentence
    run = Folder("dcd_runs/tiny")
    assert (run / "checkpoints").names() == []
    assert run.read_json("state.json")["state"] == "failed"
    mended = dcd("distill", str(file), "--set", "teacher.min_top1=0")
    assert mended.code == 0, mended
    assert "had finished no epoch: starting it anew" in mended.err


def test_a_teacher_at_chance_level_is_told_by_default(dcd: Any, experiment: Any) -> None:
    ended = dcd("distill", str(experiment({"teacher.min_top1": None})))
    assert ended.code == 2
    assert "below chance level (" in ended.sentence
    assert "teacher.min_top1: 0" in ended.sentence


# --- places and machines ------------------------------------------------------------------------


def test_a_storage_that_cannot_be_written_is_told(
    dcd: Any, experiment: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    message = refuse(dcd, experiment({"storage.path": str(tmp_path / "file" / "runs")}))
    assert message.startswith(f"storage.path: {tmp_path}/file/runs cannot be a folder")
    message = refuse(dcd, experiment({"storage.path": "nowhere://bucket/runs"}))
    assert "nowhere://bucket/runs: not a URI" in message
    if Path("/proc/self").exists():
        message = refuse(dcd, experiment({"storage.path": "/proc/runs"}))
        assert message.startswith("storage.path: /proc/runs is not writable")


def test_a_file_where_the_runs_folder_should_be_is_told(
    dcd: Any, experiment: Any, workplace: Path
) -> None:
    file = experiment()
    (workplace / "dcd_runs").mkdir()
    (workplace / "dcd_runs" / "tiny").write_text("not a run")
    message = refuse(dcd, file)
    assert f"{workplace}/dcd_runs/tiny cannot be a folder" in message


def test_nothing_is_left_at_a_storage_uri_when_the_input_is_wrong(
    dcd: Any, experiment: Any, tmp_path: Path
) -> None:
    storage = (tmp_path / "runs").as_uri()
    refuse(dcd, experiment({"storage.path": storage, "data.limit": 5000}))
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_the_machine_has_are_told(dcd: Any, experiment: Any) -> None:
    file = experiment({"scaling.workers": 500, "train.batch_size": 500})
    message = refuse(dcd, file)
    assert message.startswith("scaling.workers: 500 workers of 1 CPU are needed, but this machine")
    message = refuse(dcd, file, command="plan")
    assert "500 workers" in message


def test_gpus_that_the_machine_does_not_have_are_told(dcd: Any, experiment: Any) -> None:
    too_many = torch.cuda.device_count() + 1
    file = experiment({"scaling.workers": 1, "scaling.gpus_per_worker": too_many})
    message = refuse(dcd, file)
    assert f"1 workers of 1 CPU and {too_many} GPU are needed" in message


def test_a_sync_of_a_run_that_is_not_there_is_told(dcd: Any, workplace: Path) -> None:
    ended = dcd("sync", "other")
    assert ended.code == 2
    assert ended.sentence.startswith("other: no tracked run of that name in ")
    assert os.listdir(workplace) == []


# --- as a user sees it --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [["-m", "orchestrator"], ["-c", "from orchestrator.cli import main; main()"]]
)
def test_the_program_itself_prints_one_sentence_on_standard_error_and_ends_with_2(
    experiment: Any, tmp_path: Path, program: list[str]
) -> None:
    file = experiment({"data.limit": 5000})
    before = listing(tmp_path)
    paths = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, *program, "distill", str(file)],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    ended = Ended(done.returncode, done.stdout, done.stderr)
    assert (ended.code, ended.out) == (2, "")
    assert "data.limit 5,000 is more than" in ended.sentence
    assert listing(tmp_path) == before


# --- places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", ["garbage", "file:/runs", "http://", "foo://bar", "sqlite:///", "postgresql://u@h/db"]
)
def test_a_tracking_uri_that_can_never_work_is_refused(dcd: Any, experiment: Any, uri: str) -> None:
    sentence = refuse(dcd, experiment(), "tracking.enabled=true", f"tracking.uri={uri}")
    assert sentence.startswith(f"tracking.uri: '{uri.replace('u@', '')}'")
    assert "http" in sentence


def test_a_bad_tracking_uri_of_the_environment_is_named_and_matters_only_when_it_is_used(
    dcd: Any, experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "garbage")
    assert refuse(dcd, experiment(), "tracking.enabled=true").startswith("MLFLOW_TRACKING_URI: ")
    assert dcd("plan", str(experiment())).code == 0


def test_a_password_in_a_tracking_uri_is_not_shown(dcd: Any, experiment: Any) -> None:
    uri = "http://user:secret@127.0.0.1:9"
    ended = dcd("plan", str(experiment({"tracking.enabled": True, "tracking.uri": uri})))
    assert ended.code == 0
    assert "127.0.0.1:9" in ended.out
    assert "secret" not in ended.out + ended.err


def test_a_bare_pickle_with_code_is_refused_as_what_it_is(
    dcd: Any, experiment: Any, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "was-here"),)

    file = tmp_path / "evil.pkl"
    file.write_bytes(pickle.dumps({"weight": Evil()}))
    sentence = refuse(dcd, experiment({"teacher.checkpoint": str(file)}))
    assert (
        "refused, and nothing in it was run: it asks for the Python object posix.mkdir" in sentence
    )
    assert not (tmp_path / "was-here").exists()


def test_a_teacher_that_sees_the_students_statistics_is_noted(dcd: Any, experiment: Any) -> None:
    noted = dcd("plan", str(experiment())).out
    assert "teacher.normalize is not given" in noted
    known = {"teacher.normalize": {"mean": [0.5], "std": [0.5]}}
    assert "teacher.normalize is not given" not in dcd("plan", str(experiment(known))).out

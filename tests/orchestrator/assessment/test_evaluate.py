"""`dcd evaluate` on real runs: what it measures, what it takes as a model, what it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_networks
import torch
from digit_folder import save_digits
from rich.console import Console
from tiny_experiment import (
    run_quietly,
    save_teacher,
    tiny_experiment,
    tiny_values,
    write_experiment,
)
from torch.utils.dlpack import from_dlpack

from dcd_core import normalize
from orchestrator.assessment.evaluate import Outcome, Request, describe_outcome, evaluate_model
from orchestrator.checkpoint_file import read_state_dict
from orchestrator.data import load_dataset
from orchestrator.errors import Interrupted, UserError
from orchestrator.given_images import match_classes
from orchestrator.given_model import find_model
from orchestrator.progress import Display
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.student_model import load_student, read_package

HERE = Path(__file__).resolve().parents[1]
REPOSITORY = HERE.parents[1]


@pytest.fixture(autouse=True)
def _in_a_workplace(workplace: Path) -> None:
    pass


def evaluate(model: str, **request: Any) -> Outcome:
    """Without a word on the terminal."""
    display = Display(Console(file=io.StringIO()))
    return evaluate_model(Request(model, **request), display=display)


def train(teacher_file: Path, updates: Mapping[str, Any] | None = None) -> Experiment:
    """A finished run."""
    experiment = tiny_experiment(teacher_file, updates)
    run_quietly(experiment)
    return experiment


def refusal(model: str, **request: Any) -> str:
    """The sentence of a refusal that leaves nothing."""
    before = sorted(Path.cwd().parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        evaluate(model, **request)
    assert sorted(Path.cwd().parent.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_runs_student_scores_what_its_run_has_measured(teacher_file: Path, split: Any) -> None:
    train(teacher_file)
    result = json.loads(Path("dcd_runs/tiny/result.json").read_text())
    found = evaluate("tiny", split=split).evaluation
    quality = found.model.quality
    assert quality.top1 == pytest.approx(result[f"{split}/top1"])
    assert quality.top5 == pytest.approx(result[f"{split}/top5"])
    assert quality.nll == pytest.approx(result[f"{split}/loss"], rel=1e-5)
    assert found.teacher is not None
    assert found.teacher.quality.top1 == pytest.approx(result[f"teacher/{split}_top1"])
    assert found.notes == ()


def test_agreement_is_that_of_the_two_networks_on_the_test_images(teacher_file: Path) -> None:
    experiment = train(teacher_file)
    found = evaluate("tiny").evaluation.agreement
    dataset = load_dataset(experiment.data)
    assert dataset.test is not None
    images = normalize(from_dlpack(dataset.test.images), mean=dataset.mean, std=dataset.std)
    teacher = tiny_networks.network(10, width=5).eval()
    teacher.load_state_dict(read_state_dict(str(teacher_file)))
    with torch.no_grad():
        p = teacher(images).double().softmax(1)
        q = load_student("dcd_runs/tiny")(images).double().softmax(1)
    assert found is not None
    assert found.same_top1 == pytest.approx(100 * (p.argmax(1) == q.argmax(1)).double().mean())
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)
    assert found.kl > 0


def test_all_that_is_found_lies_in_a_folder_of_its_own(teacher_file: Path) -> None:
    train(teacher_file)
    outcome = evaluate("tiny")
    folder = Path("dcd_runs/tiny-on-digits-test")
    assert str(folder.absolute()) == outcome.folder.location
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.parquet",
        "confusion.png",
        "evaluation.json",
        "per_class.parquet",
        "reliability.png",
    ]
    table = pq.read_table(folder / "per_class.parquet").to_pydict()
    assert table["name"] == list("0123456789")
    quality = outcome.evaluation.model.quality
    assert sum(table["correct"]) / sum(table["images"]) == pytest.approx(quality.top1 / 100)
    assert outcome.folder.location in describe_outcome(outcome)
    again = evaluate("tiny")
    assert again.folder.location == f"{outcome.folder.location}-2"
    assert sorted(os.listdir("dcd_runs")) == [
        "tiny", "tiny-on-digits-test", "tiny-on-digits-test-2",
    ]  # fmt: skip


def test_a_model_is_a_run_a_folder_a_package_a_checkpoint_or_an_experiments_teacher(
    teacher_file: Path, tmp_path: Path
) -> None:
    experiment = train(teacher_file)
    spec = write_experiment(tmp_path / "e.yaml", tiny_values(teacher_file))
    by_name = evaluate("tiny").evaluation.model.quality
    for model in ("dcd_runs/tiny", "dcd_runs/tiny/student", str(Path("dcd_runs/tiny").absolute())):
        found = find_model(model)
        known = find_model("tiny")
        assert found._replace(folder=None, student=None) == known._replace(
            folder=None, student=None
        )
        assert found.student is not None and known.student is not None
        assert found.student._replace(state={}) == known.student._replace(state={})
        assert found.student.state.keys() == known.student.state.keys()
        for key, value in known.student.state.items():
            assert torch.equal(found.student.state[key], value)
        assert found.folder is not None
        assert found.folder.location == str(Path("dcd_runs/tiny").absolute())
    moved = shutil.copytree("dcd_runs/tiny/student", tmp_path / "package")
    alone = evaluate(str(moved), data=str(spec)).evaluation
    assert torch.equal(alone.model.quality.confusion, by_name.confusion)
    assert alone.notes[0].startswith("not compared with its teacher: ")

    teacher = evaluate(str(spec)).evaluation
    assert teacher.teacher is None
    own = evaluate("tiny").evaluation.teacher
    assert own is not None
    assert torch.equal(teacher.model.quality.confusion, own.quality.confusion)
    torch.save(load_student("dcd_runs/tiny").state_dict(), tmp_path / "weights.pt")
    checkpoint = evaluate(
        str(tmp_path / "weights.pt"), source="tiny_networks:network", data=str(spec)
    ).evaluation
    assert read_package("dcd_runs/tiny").mean == load_dataset(experiment.data).mean
    assert torch.equal(checkpoint.model.quality.confusion, by_name.confusion)


def test_a_checkpoint_without_a_normalisation_gets_that_of_the_images_and_a_note(
    teacher_file: Path, tmp_path: Path
) -> None:
    spec = write_experiment(tmp_path / "e.yaml", tiny_values(teacher_file))
    network = {"source": "tiny_networks:relu_network", "data": str(spec)}
    (note,) = evaluate(str(teacher_file), **network).evaluation.notes
    assert note == (
        "normalisation measured on these images: set data.normalize to what teacher-10-0.pt was "
        "trained with"
    )
    known = ("data.normalize={mean: [0.5], std: [0.5]}",)
    assert evaluate(str(teacher_file), overrides=known, **network).evaluation.notes == ()


def test_a_fitted_teacher_is_found_by_the_student_and_by_its_experiment(
    teacher_file: Path, tmp_path: Path
) -> None:
    fit = {"teacher": {"source": "tiny_networks:network", "min_top1": 0,
                       "fit": {"epochs": 1, "batch_size": 20}}}  # fmt: skip
    spec = write_experiment(tmp_path / "e.yaml", tiny_values(teacher_file, fit))
    assert "its teacher is not trained yet" in refusal(str(spec))
    train(teacher_file, fit)
    result = json.loads(Path("dcd_runs/tiny/result.json").read_text())
    found = evaluate("tiny").evaluation
    assert found.teacher is not None
    assert found.teacher.quality.top1 == pytest.approx(result["teacher/test_top1"])
    assert evaluate(str(spec)).evaluation.model.quality.top1 == pytest.approx(
        result["teacher/test_top1"]
    )


def test_other_images_are_made_as_large_as_the_students_own(
    teacher_file: Path, tmp_path: Path
) -> None:
    train(teacher_file)
    save_digits(tmp_path / "photos", classes=range(10), per_class=20)
    place = (f"data.path={tmp_path}/photos", "data.test_fraction=0.5")
    own = evaluate("tiny", data="imagefolder", overrides=place).evaluation
    assert "10 classes, 1x8x8" in own.data
    assert own.num_images == 100
    assert "class 0 is 'eight' in the data and was '0' in training" in own.notes[0]
    larger = evaluate("tiny", data="imagefolder", overrides=(*place, "data.resize=12")).evaluation
    assert "1x12x12" in larger.data


def test_classes_in_another_order_are_matched_by_their_name(
    teacher_file: Path, tmp_path: Path
) -> None:
    three = save_teacher(tmp_path, num_classes=3)
    train(three, {"data.classes": [2, 0, 1]})
    own = evaluate("tiny").evaluation
    ordered = ("data.classes=[0, 1, 2]",)
    found = evaluate("tiny", overrides=ordered).evaluation
    assert own.class_names == ("2", "0", "1") and found.class_names == ("0", "1", "2")
    place = [own.class_names.index(name) for name in found.class_names]
    assert own.teacher is not None and found.teacher is not None
    for before, after in ((own.model, found.model), (own.teacher, found.teacher)):
        assert torch.equal(after.quality.confusion, before.quality.confusion[place][:, place])
    assert own.agreement is not None and found.agreement is not None
    assert found.agreement.kl == pytest.approx(own.agreement.kl, rel=1e-5)
    assert found.notes == (
        "tiny: class 0 is '0' in the data and was '2' in training: classes are matched by their "
        "name",
    )
    same = evaluate("tiny", overrides=ordered, teacher="tiny").evaluation.agreement
    assert same is not None and (same.same_top1, same.kl) == (100.0, pytest.approx(0.0))
    spec = write_experiment(tmp_path / "e.yaml", tiny_values(three, {"data.classes": [2, 0, 1]}))
    unnamed = evaluate("tiny", overrides=ordered, teacher=str(spec)).evaluation
    assert unnamed.notes[1].endswith("has no names of its classes: matched by their number")


def test_classes_of_which_only_some_have_the_same_name_are_refused(tmp_path: Path) -> None:
    train(save_teacher(tmp_path, num_classes=3), {"data.classes": [2, 0, 1]})
    assert refusal("tiny", overrides=("data.classes=[0, 1, 7]",)) == (
        "tiny was trained on other classes than the data's: '2' only in training, '7' only in the "
        "data: give images of the same classes, under the same names"
    )


def test_classes_that_share_a_name_cannot_be_matched_by_it() -> None:
    with pytest.raises(UserError, match="several classes in training are called 'crane'"):
        match_classes("bird", ["crane", "owl", "crane"], ["owl", "crane", "crane"])


def test_a_teacher_can_be_named_and_one_that_is_gone_is_only_missed(
    teacher_file: Path, tmp_path: Path
) -> None:
    train(teacher_file)
    train(teacher_file, {"name": "other", "seed": 1})
    found = evaluate("tiny", teacher="other").evaluation
    assert found.teacher is not None and found.teacher.name == "other"
    same = evaluate("tiny", teacher="tiny").evaluation.agreement
    assert same is not None and (same.same_top1, same.kl) == (100.0, pytest.approx(0.0))
    kept = teacher_file.read_bytes()
    teacher_file.unlink()
    (note,) = evaluate("tiny").evaluation.notes
    assert note.startswith("not compared with its teacher: teacher.checkpoint: ")
    torch.manual_seed(9)
    torch.save(tiny_networks.network(10, width=5).state_dict(), teacher_file)
    (note,) = evaluate("tiny").evaluation.notes
    assert "has other weights now" in note
    teacher_file.write_bytes(kept)
    assert evaluate("tiny").evaluation.notes == ()
    assert refusal("tiny", teacher="nobody").startswith("--teacher: no model 'nobody'")


def test_what_does_not_fit_is_refused_in_a_sentence(teacher_file: Path, tmp_path: Path) -> None:
    train(teacher_file)
    save_digits(tmp_path / "photos", classes=range(4), per_class=20)
    place = (f"data.path={tmp_path}/photos", "data.test_fraction=0.5")
    assert refusal("tiny", data="imagefolder", overrides=place).startswith(
        "tiny tells 10 classes apart and the data has 4: "
    )
    wanted = (*place, "data.grey_to_rgb=true")
    assert refusal("tiny", data="imagefolder", overrides=wanted) == (
        "tiny takes images of 1 channel and these have 3: use other images"
    )
    assert refusal("tyny").endswith("did you mean 'tiny'?")
    assert "data.source" in refusal("tiny", data="imagfolder")
    assert "has no test split: set data.test_fraction" in refusal("tiny", data="digits")
    assert refusal("tiny", overrides=("train.epochs=3",)).startswith("--set train.epochs=3: only")
    assert refusal("tiny", num_classes=3).startswith("--num-classes")
    write_experiment(tmp_path / "no.yaml", {"name": "no"})
    assert refusal("tiny", data=str(tmp_path / "no.yaml")).endswith("no.yaml: has no data section")
    alone = shutil.copytree("dcd_runs/tiny/student", tmp_path / "package")
    assert refusal(str(alone)).endswith("give --data")
    # Images may take long to be read, and these cannot be: it is said before that.
    gone = refusal("gone.pt", source="tiny_networks:network", data="imagefolder")
    assert gone == "gone.pt: there is no such checkpoint file"


@pytest.mark.parametrize("network", ["resnet8", "timm:resnet18", "torchvision:resnet18"])
def test_a_networks_name_alone_is_answered_with_how_it_can_be_evaluated(network: str) -> None:
    assert refusal(network) == (
        f"{network} is a network and no trained model: give a checkpoint of it and --source "
        f"{network}, or an experiment file whose teacher it is"
    )


def test_a_run_may_be_called_like_a_network(teacher_file: Path) -> None:
    train(teacher_file, {"name": "resnet8"})
    assert find_model("resnet8").package is not None


def test_an_unfinished_run_has_no_student_yet(teacher_file: Path) -> None:
    train(teacher_file)
    shutil.rmtree("dcd_runs/tiny/student")
    assert refusal("tiny") == ("tiny has no student yet: `dcd distill --resume` finishes the run")


def test_of_many_runs_one_must_be_named(teacher_file: Path) -> None:
    train(teacher_file)
    group = Path("dcd_runs/search")
    shutil.copytree("dcd_runs/tiny", group / "finals" / "0001-seed-7")
    (group / "group.json").write_text("{}")
    assert refusal("search") == (
        "search is many runs: name one of them, such as search/finals/0001-seed-7"
    )
    found = evaluate("search/finals/0001-seed-7").evaluation
    assert found.teacher is not None


def test_a_command_that_is_stopped_while_it_writes_leaves_nothing(
    teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(teacher_file)
    write = Folder.write

    def stopped(folder: Folder, name: str, content: bytes | str) -> None:
        write(folder, name, content)
        if name == "confusion.parquet":
            raise Interrupted(2)

    monkeypatch.setattr(Folder, "write", stopped)
    with pytest.raises(Interrupted):
        evaluate("tiny")
    assert os.listdir("dcd_runs") == ["tiny"]


def test_the_command_prints_the_numbers_and_says_where_they_are(teacher_file: Path) -> None:
    train(teacher_file)
    command = [sys.executable, "-W", "error", "-m", "orchestrator", "evaluate"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)])}
    done = subprocess.run([*command, "tiny"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(Path("dcd_runs/tiny-on-digits-test/evaluation.json").read_text())
    assert f"{found['model']['top1']:.2f} %" in done.stdout
    assert f"results  {Path('dcd_runs/tiny-on-digits-test').absolute()}" in done.stdout
    wrong = subprocess.run([*command, "tyny"], env=environment, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: no model 'tyny'")


def test_a_split_that_is_none_is_refused_with_those_that_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "evaluate", "tiny", "--split", "vall"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        "Invalid value for '--split': 'vall' is not one of 'train', 'val', 'test'\n"
    )

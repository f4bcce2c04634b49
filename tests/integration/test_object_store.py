"""Images, runs and the teacher's answers behind `s3://`, on a real server: as on local disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import digits
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import ObjectStore
from sklearn.datasets import load_digits

from orchestrator.distillation import distill
from orchestrator.experiment_file import build_experiment
from orchestrator.storage import Folder

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    *digits.RAY_WARNINGS,
    # pandas and pyarrow inside Ray Data.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CACHED = "time/teacher_cached_percent"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 digits as Parquet, and the same ones as files."""
    source, folder = load_digits(), tmp_path_factory.mktemp("images")
    encoded = [digits.png(digit) for digit in source.images[:400]]
    labels = [int(label) for label in source.target[:400]]
    (folder / "parquet").mkdir()
    for start in (0, 250):
        rows = slice(start, start + 250)
        table = pa.table({"image": encoded[rows], "label": labels[rows]})
        pq.write_table(table, folder / "parquet" / f"{start:03}.parquet", row_group_size=60)
    for number, (label, content) in enumerate(zip(labels, encoded, strict=True)):
        (folder / "files" / str(label)).mkdir(parents=True, exist_ok=True)
        (folder / "files" / str(label) / f"{number:03}.png").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[ObjectStore]:
    """A store that holds the images, reached by the environment of this process."""
    with (
        ObjectStore(tmp_path_factory.mktemp("store") / "log") as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        for key, value in running.environment.items():
            patch.setenv(key, value)
        running.put(images, "s3://images")
        running.put(digits.save_teacher(tmp_path_factory.mktemp("teacher")).parent, "s3://models")
        for bucket in ("runs", "answers"):
            running.put(tmp_path_factory.mktemp("nothing"), f"s3://{bucket}")
        yield running


def experiment(data: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """DCD + KD on a set from elsewhere; two epochs."""
    values = digits.experiment("s3://models/teacher.pt", {"train.epochs": 2})
    values["data"] = {
        "resize": 16,
        "grey_to_rgb": True,
        "crop_padding": 1,
        "flip": False,
        "test_fraction": 0.2,
        **data,
    }
    return values | sections


def distilled(folder: Path, values: dict[str, Any]) -> str:
    """Run the command on a node that has fetched nothing yet."""
    digits.write(folder / f"{values['name']}.yaml", values)
    temporary = folder / f"temporary-{values['name']}"
    temporary.mkdir()
    return digits.run(folder, "distill", f"{values['name']}.yaml", TMPDIR=str(temporary))


@pytest.mark.parametrize("kind", ["parquet", "files"])
def test_images_streamed_from_a_store_give_the_numbers_of_the_same_images_here(
    kind: str, store: ObjectStore, cluster: str, images: Path, workplace: Path
) -> None:
    found = {}
    for name, root in (("there", "s3://images"), ("here", str(images))):
        data = {
            "source": "parquet" if kind == "parquet" else "imagefolder",
            "path": f"{root}/{kind}",
            "streaming": True,
            "memory_gib": 0.0005,
        }
        scaling = {"cpus_per_worker": 1, "workers": 2}
        values = experiment(data, name=name, scaling=scaling)
        distill(build_experiment(values, where="test"))
        found[name] = digits.epochs(workplace / "dcd_runs" / name)
    assert found["there"] == found["here"]
    assert {1, 2} <= set(found["there"])


def test_a_run_and_the_teachers_answers_in_a_store_are_used_again(
    store: ObjectStore, images: Path, workplace: Path
) -> None:
    values = experiment(
        {"source": "parquet", "path": "s3://images/parquet"},
        storage={"path": "s3://runs/dcd"},
        teacher_cache={"path": "s3://answers/digits"},
        scaling={"workers": 0},
    )
    distilled(workplace, values)
    runs = Folder("s3://runs/dcd")
    first = (runs / "run").read_json("result.json")
    assert (runs / "run" / "student").read("weights.safetensors") is not None
    assert not (workplace / "dcd_runs").exists()

    output = distilled(workplace, values | {"name": "again"})
    again = (runs / "again").read_json("result.json")
    assert again["test/top1"] == first["test/top1"]
    assert "again: the teacher's answers are kept in s3://answers/digits" in output
    live, cached = (
        [p.value for p in digits.points(f"s3://runs/dcd/{name}") if p.name == CACHED]
        for name in ("run", "again")
    )
    assert live == [0, 0]
    assert cached == [100, 100]

    digits.run(workplace, "evaluate", "run", "--storage", "s3://runs/dcd")
    found = (runs / "run-on-parquet-test").read_json("evaluation.json")
    assert found["model"]["top1"] == pytest.approx(first["test/top1"])
    listed = digits.run(workplace, "cache", "ls", "--path", "s3://answers/digits")
    assert "resnet14" in listed.rpartition("results  ")[2]


def test_a_run_in_a_store_that_was_killed_goes_on_there(
    store: ObjectStore, workplace: Path
) -> None:
    values = experiment(
        {"source": "parquet", "path": "s3://images/parquet"},
        storage={"path": "s3://runs/killed"},
        scaling={"workers": 0},
    )
    values["train"] = values["train"] | {"epochs": 30}
    digits.write(workplace / "run.yaml", values)
    process = digits.start(workplace, "distill", "run.yaml")
    place = "s3://runs/killed/run"
    try:
        digits.wait_until(lambda: len(digits.epochs(place)) >= 2, what="second epoch")
    finally:
        process.kill()
        process.wait()
    assert max(digits.epochs(place)) < 30
    output = digits.run(workplace, "distill", "--resume", "run", "--storage", "s3://runs/killed")
    assert "epoch 1/30" not in output.rpartition("reading images")[2]
    assert max(digits.epochs(place)) == 30
    assert Folder(place).read_json("result.json")["best_epoch"] >= 1

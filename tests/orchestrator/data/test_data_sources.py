from __future__ import annotations

import json
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image
from read_sources import everything, read, refusal

from orchestrator.data.folders import IMAGE_EXTENSIONS
from orchestrator.data.raw import RawImages

Write = Callable[..., Path]


# digits


def test_digits_span_the_whole_range_of_eight_bits() -> None:
    data = read(source="digits")

    pixels = np.stack(everything(data.train))
    assert pixels.shape == (1797, 8, 8, 1)
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)
    # The first digit's first row is 0 0 5 13 9 1 0 0 of 16.
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert data.train.labels[:10].tolist() == list(range(10))
    assert data.class_names == tuple("0123456789")
    assert data.test is None


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    assert "pip install scikit-learn" in refusal(source="digits")


# CIFAR


@pytest.mark.parametrize(
    ("name", "num_train", "num_classes"), [("cifar10", 200, 10), ("cifar100", 40, 100)]
)
def test_cifar_layouts_are_read_with_their_class_names(
    tmp_path: Path, write_cifar: Write, name: str, num_train: int, num_classes: int
) -> None:
    folder = write_cifar(tmp_path, name)

    data = read(source=name, path=str(tmp_path))

    assert data.test is not None
    assert data.class_names is not None
    assert len(data.train.labels) == num_train
    assert len(data.test.labels) == 40
    assert data.class_names == tuple(f"class{label}" for label in range(num_classes))
    file = "data_batch_2" if name == "cifar10" else "train"
    with (folder / file).open("rb") as stream:
        stored = pickle.load(stream, encoding="latin1")
    position = 43 if name == "cifar10" else 3
    (image,) = data.train.read(np.array([position]))
    assert isinstance(image, np.ndarray)
    assert data.train.name(position) == f"{file} image 3"
    # Stored as 1,024 reds, then greens, then blues, row by row.
    assert image[2, 5].tolist() == [stored["data"][3, c * 1024 + 2 * 32 + 5] for c in range(3)]


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2's cPickle wrote for the published files: byte strings, numpy of that time."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    data = images.tobytes()
    dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + short(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n"
    array += b"K\x00\x85" + short(b"b") + b"\x87R"
    array += b"(K\x01" + integer(images.shape[0]) + integer(images.shape[1]) + b"\x86" + dtype
    array += b"\x89" + b"T" + struct.pack("<i", len(data)) + data + b"tb"
    label_list = b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(b"labels") + label_list + b"u."


def test_the_pickles_that_python_2_wrote_are_read(tmp_path: Path, write_cifar: Write) -> None:
    folder = write_cifar(tmp_path, "cifar10")
    images = np.random.default_rng(9).integers(0, 256, (3, 3072), dtype=np.uint8)
    (folder / "test_batch").write_bytes(python2_batch(images, [7, 8, 9]))

    data = read(source="cifar10", path=str(tmp_path))

    assert data.test is not None
    assert data.test.labels.tolist() == [7, 8, 9]
    stored = np.stack(everything(data.test)).transpose(0, 3, 1, 2).reshape(3, 3072)
    assert np.array_equal(stored, images)


def test_absent_cifar_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    message = refusal(source="cifar10", path=str(tmp_path))

    assert f"{tmp_path / 'cifar-10-batches-py'} lacks data_batch_1, data_batch_2, " in message
    assert "data.download: true" in message
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_says_where_to_put_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = (tmp_path / "no-such-server.tar.gz").as_uri()
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", nowhere)

    message = refusal(source="cifar100", path=str(tmp_path), download=True)

    assert "CIFAR100 could not be fetched" in message
    assert str(tmp_path / "cifar-100-python") in message


def test_what_is_on_disk_is_not_fetched_again(
    tmp_path: Path, write_cifar: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, "cifar100")
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", "file:///no/such/server")

    assert len(read(source="cifar100", path=str(tmp_path), download=True).train.labels) == 40


class _Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the code in the pickle ran')",)


def test_code_inside_a_cifar_pickle_is_refused_and_not_run(
    tmp_path: Path, write_cifar: Write
) -> None:
    folder = write_cifar(tmp_path, "cifar100")
    (folder / "train").write_bytes(pickle.dumps(_Attack(), protocol=2))

    assert "exec" in refusal(source="cifar100", path=str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, protocol=2)[:60],
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 9), np.uint8), "fine_labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0.5, 1]}, protocol=2),
    ],
    ids=["empty", "junk", "truncated", "no labels", "other shape", "fractional labels"],
)
def test_a_damaged_cifar_file_is_named(tmp_path: Path, write_cifar: Write, content: bytes) -> None:
    folder = write_cifar(tmp_path, "cifar100")
    (folder / "train").write_bytes(content)

    message = refusal(source="cifar100", path=str(tmp_path))

    assert message.startswith(f"{folder / 'train'}: ")
    assert "fetch" in message


# image folders


def test_classes_are_numbered_by_sorted_folder_name(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path, {"dog": 2, "ant": 3, "Cat": 1})

    data = read(source="imagefolder", path=str(tmp_path))

    assert data.class_names == ("Cat", "ant", "dog")
    assert data.train.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert data.train.name(3) == str(tmp_path / "ant" / "002.png")
    assert data.test is None


def test_the_same_images_are_found_as_by_torchvision(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path, {"ant": 2, "bee/nested": 2})
    Image.new("L", (2, 2)).save(tmp_path / "ant" / "UPPER.JPG", "JPEG")
    (tmp_path / "ant" / "notes.txt").write_text("not an image")

    data = read(source="imagefolder", path=str(tmp_path))

    expected = torchvision.datasets.ImageFolder(tmp_path)
    names = {data.train.name(i): int(label) for i, label in enumerate(data.train.labels)}
    assert names == dict(expected.samples)
    assert torchvision.datasets.folder.IMG_EXTENSIONS == IMAGE_EXTENSIONS


def test_train_and_test_folders_are_found_inside_the_path(
    tmp_path: Path, write_folder: Write
) -> None:
    write_folder(tmp_path / "train", {"ant": 3, "bee": 3})
    write_folder(tmp_path / "test", {"bee": 2})

    data = read(source="imagefolder", path=str(tmp_path))

    assert data.test is not None
    assert data.class_names == ("ant", "bee")
    assert data.test.labels.tolist() == [1, 1]


def test_a_test_path_overrides_the_test_folder(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path / "in" / "train", {"ant": 3, "bee": 3})
    write_folder(tmp_path / "in" / "test", {"bee": 2})
    write_folder(tmp_path / "out", {"ant": 5})

    data = read(source="imagefolder", path=str(tmp_path / "in"), test_path=str(tmp_path / "out"))

    assert data.test is not None
    assert data.test.labels.tolist() == [0] * 5


def test_hidden_files_and_folders_are_no_images_and_no_classes(
    tmp_path: Path, write_folder: Write
) -> None:
    write_folder(tmp_path, {"ant": 1, "bee": 1, ".cache": 1})
    (tmp_path / "ant" / "._000.png").write_bytes(b"resource fork")

    data = read(source="imagefolder", path=str(tmp_path))

    assert data.class_names == ("ant", "bee")
    assert len(data.train.labels) == 2


def test_an_unknown_test_class_is_refused(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path / "train", {"ant": 1, "bee": 1})
    write_folder(tmp_path / "test", {"wasp": 1})

    message = refusal(source="imagefolder", path=str(tmp_path))

    assert "class 'wasp' has no training images" in message
    assert "ant, bee" in message


def test_bad_image_folders_are_refused(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path / "good", {"ant": 1, "bee": 1})
    (tmp_path / "none").mkdir()
    write_folder(tmp_path / "hole", {"ant": 1, "bee": 0})
    (tmp_path / "file").write_text("")

    def message(path: str, **options: Any) -> str:
        return refusal(source="imagefolder", path=path, **options)

    good = str(tmp_path / "good")
    assert "gone does not exist" in message(str(tmp_path / "gone"))
    assert "is a file, not a folder" in message(str(tmp_path / "file"))
    assert "none holds no class folders" in message(str(tmp_path / "none"))
    assert "bee holds no images" in message(str(tmp_path / "hole"))
    assert "data.test_path: " in message(good, test_path=str(tmp_path / "gone"))
    assert "lies in the training folder" in message(good, test_path=str(tmp_path / "good" / "ant"))
    assert "lies in the training folder" in message(good, test_path=good)
    assert "lies in the training folder" in message(
        (tmp_path / "good").as_uri(), test_path=str(tmp_path / "good" / "ant")
    )
    assert message("nowhere://bucket/images").startswith(
        "data.path: nowhere://bucket/images cannot be opened (ArrowInvalid: Unrecognized filesystem"
    )


# Parquet


def labels_and_values(images: RawImages) -> list[tuple[int, int]]:
    from orchestrator.data.decode import decode_image

    values = [
        int(decode_image(image, size=None, grey_to_rgb=False)[0, 0, 0])
        for image in everything(images)
    ]
    return list(zip(images.labels.tolist(), values, strict=True))


@pytest.fixture
def shards(tmp_path: Path, write_parquet: Write) -> Path:
    """Two training shards, a test shard elsewhere, and files that are no shards."""
    folder = tmp_path / "shards"
    write_parquet(folder / "train-1.parquet", [0, 1, 0], first_value=10, row_group_size=2)
    write_parquet(folder / "train-0.parquet", [1, 1], first_value=0)
    write_parquet(tmp_path / "elsewhere" / "test.parquet", [0, 1], first_value=50)
    (folder / "_SUCCESS").write_text("")
    (folder / "_common.parquet").write_text("metadata of another tool")
    return folder


@pytest.mark.parametrize(
    "location",
    ["{}", "{}/", "{}/*.parquet", "{}/train-[0-9].parquet", "{parent}/shar*/t*.parquet"],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_shards_are_found_by_folder_glob_and_uri_and_sorted(
    shards: Path, location: str, scheme: str
) -> None:
    if location.endswith("*.parquet") and "train" not in location and "shar" not in location:
        (shards / "_common.parquet").unlink()

    data = read(source="parquet", path=scheme + location.format(shards, parent=shards.parent))

    assert labels_and_values(data.train) == [(1, 0), (1, 1), (0, 10), (1, 11), (0, 12)]
    assert [data.train.name(i) for i in (0, 2, 4)] == [
        "train-0.parquet row 0",
        "train-1.parquet row 0",
        "train-1.parquet row 2",
    ]


def test_only_the_rows_asked_for_are_read(shards: Path) -> None:
    data = read(source="parquet", path=str(shards))

    chosen = list(data.train.read(np.array([1, 2, 4])))

    assert chosen == [everything(data.train)[position] for position in (1, 2, 4)]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_one_file_and_a_test_file_are_read(shards: Path, scheme: str) -> None:
    data = read(
        source="parquet",
        path=f"{scheme}{shards}/train-0.parquet",
        test_path=f"{scheme}{shards.parent}/elsewhere",
    )

    assert data.test is not None
    assert labels_and_values(data.train) == [(1, 0), (1, 1)]
    assert labels_and_values(data.test) == [(0, 50), (1, 51)]


def test_a_relative_path_is_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards.parent)

    assert len(read(source="parquet", path="shards/train-*.parquet").train.labels) == 5
    monkeypatch.chdir(shards)
    assert len(read(source="parquet", path="train-*.parquet").train.labels) == 5


def test_brackets_in_the_name_of_a_folder_are_no_pattern(
    tmp_path: Path, write_parquet: Write
) -> None:
    write_parquet(tmp_path / "[set 1]" / "a.parquet", [0, 1])

    assert len(read(source="parquet", path=str(tmp_path / "[set 1]")).train.labels) == 2


def test_test_rows_among_the_training_rows_are_refused(shards: Path) -> None:
    message = refusal(source="parquet", path=str(shards), test_path=str(shards / "train-1.parquet"))

    assert "both hold" in message
    assert "train-1.parquet" in message


def test_the_splits_of_one_folder_are_not_mixed(shards: Path, write_parquet: Write) -> None:
    write_parquet(shards / "test-00000-of-00001.parquet", [0, 1])

    message = refusal(source="parquet", path=str(shards))

    assert message.startswith(f"data.path: {shards} holds shards of test and train: narrow it")
    narrow = {"path": f"{shards}/train-*.parquet", "test_path": f"{shards}/test-*.parquet"}
    data = read(source="parquet", **narrow)
    assert data.test is not None
    assert (len(data.train.labels), len(data.test.labels)) == (5, 2)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"classes": "ant, bee"}, ("ant", "bee")),
        ({"classes": '["a, b", "c"]'}, ("a, b", "c")),
        (
            {
                "huggingface": json.dumps(
                    {"info": {"features": {"label": {"names": ["x", "y"], "_type": "ClassLabel"}}}}
                )
            },
            ("x", "y"),
        ),
        ({"huggingface": json.dumps({"info": {"features": {"label": {}}}})}, None),
        ({"other": "1"}, None),
        (None, None),
    ],
)
def test_class_names_come_from_the_schema(
    tmp_path: Path,
    write_parquet: Write,
    metadata: dict[str, str] | None,
    expected: tuple[str, ...] | None,
) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1], metadata=metadata)

    assert read(source="parquet", path=str(path)).class_names == expected


def test_damaged_class_names_are_an_error_that_names_the_file(
    tmp_path: Path, write_parquet: Write
) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1], metadata={"classes": '["a",'})

    assert "a.parquet" in refusal(source="parquet", path=str(path))


@pytest.mark.parametrize("label_type", [pa.int8(), pa.int32(), pa.uint8(), pa.uint64()])
def test_any_integer_type_of_labels_is_read(
    tmp_path: Path, write_parquet: Write, label_type: pa.DataType
) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1], label_type=label_type)

    labels = read(source="parquet", path=str(path)).train.labels

    assert labels.tolist() == [0, 1]
    assert labels.dtype == np.int64


def test_the_image_struct_of_hugging_face_datasets_is_read(
    tmp_path: Path, make_png: Callable[..., bytes]
) -> None:
    images = [{"bytes": make_png(value), "path": f"{value}.png"} for value in (3, 4)]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "a.parquet")

    data = read(source="parquet", path=str(tmp_path))

    assert labels_and_values(data.train) == [(0, 3), (1, 4)]


def test_cifar100_as_hugging_face_writes_it_is_mapped_by_column(
    tmp_path: Path, make_png: Callable[..., bytes]
) -> None:
    def names(*values: str) -> dict[str, Any]:
        return {"names": list(values), "_type": "ClassLabel"}

    features = {
        "img": {"_type": "Image"},
        "fine_label": names("apple", "beaver", "bee"),
        "coarse_label": names("fruit", "animal"),
    }
    table = pa.table(
        {
            "img": [{"bytes": make_png(value), "path": None} for value in (5, 6, 7)],
            "fine_label": [0, 2, 1],
            "coarse_label": [0, 1, 1],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(table, path)
    options = {"source": "parquet", "path": str(path)}

    message = refusal(**options)
    assert "set data.image_column to one of img, fine_label, coarse_label" in message
    message = refusal(**options, image_column="img")
    assert "set data.label_column to one of img, fine_label, coarse_label" in message
    fine = read(**options, image_column="img", label_column="fine_label")
    assert labels_and_values(fine.train) == [(0, 5), (2, 6), (1, 7)]
    assert fine.class_names == ("apple", "beaver", "bee")
    coarse = read(**options, image_column="img", label_column="coarse_label")
    assert labels_and_values(coarse.train) == [(0, 5), (1, 6), (1, 7)]
    assert coarse.class_names == ("fruit", "animal")


def test_an_image_that_was_not_embedded_is_read_from_its_file(
    tmp_path: Path, make_png: Callable[..., bytes]
) -> None:
    (tmp_path / "9.png").write_bytes(make_png(9))
    images = [
        {"bytes": None, "path": str(tmp_path / "9.png")},
        {"bytes": make_png(8), "path": "elsewhere.png"},
    ]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "a.parquet")

    data = read(source="parquet", path=str(tmp_path / "a.parquet"))

    assert labels_and_values(data.train) == [(0, 9), (1, 8)]


def test_other_column_names_can_be_given(tmp_path: Path, write_parquet: Write) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1], image_column="jpg")

    data = read(source="parquet", path=str(path), image_column="jpg")

    assert labels_and_values(data.train) == [(0, 0), (1, 1)]
    message = refusal(source="parquet", path=str(path))
    assert "no column 'image'" in message
    assert "data.image_column" in message
    assert "jpg, label" in message
    message = refusal(source="parquet", path=str(path), image_column="jpg", label_column="y")
    assert "no column 'y'" in message
    assert "data.label_column" in message


def test_unusable_columns_are_refused(tmp_path: Path, write_parquet: Write) -> None:
    fractional = write_parquet(tmp_path / "a.parquet", [0.0, 1.0], label_type=pa.float64())
    names = write_parquet(tmp_path / "b.parquet", ["ant", "bee"], label_type=pa.string())
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / "c.parquet")

    assert "holds double, not integer labels" in refusal(source="parquet", path=str(fractional))
    assert "holds string, not integer labels" in refusal(source="parquet", path=str(names))
    message = refusal(source="parquet", path=str(tmp_path / "c.parquet"))
    assert "holds string, not encoded image bytes" in message


def test_a_null_label_is_refused_with_its_row(tmp_path: Path, write_parquet: Write) -> None:
    write_parquet(tmp_path / "a.parquet", [0, 1])
    write_parquet(tmp_path / "b.parquet", [0, 1, None, 1])

    assert refusal(source="parquet", path=str(tmp_path)).startswith("b.parquet row 2: ")


def test_a_null_image_is_handed_over_as_a_hole(
    tmp_path: Path, write_parquet: Write, make_png: Callable[..., bytes]
) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1], images=[make_png(0), None])

    assert everything(read(source="parquet", path=str(path)).train) == [make_png(0), None]


def test_bad_parquet_locations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.parquet").write_bytes(b"not parquet")

    def message(path: str) -> str:
        return refusal(source="parquet", path=path)

    assert "data.path: " in message(f"{tmp_path}/gone.parquet")
    assert "does not exist" in message(f"{tmp_path}/gone.parquet")
    assert "does not exist" in message(f"file://{tmp_path}/gone/*.parquet")
    assert "holds no .parquet file" in message(f"{tmp_path}/empty")
    assert "holds no .parquet file" in message(f"{tmp_path}/train-*.parquet")
    assert "junk.parquet cannot be read as Parquet" in message(f"{tmp_path}/junk.parquet")
    assert "cannot be read as Parquet" in message("nosuchscheme://bucket/a.parquet")
    assert refusal(
        source="parquet", path=f"{tmp_path}/junk.parquet", test_path=f"{tmp_path}/gone"
    ).startswith("data.test_path: ")

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import Dataset, ImageSet, describe_counts, load_dataset
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

Write = Callable[..., Path]

CIFAR10 = Path(__file__).resolve().parents[3] / ".." / "shared" / "cifar10"


def load(**options: Any) -> Dataset:
    return load_dataset(DataSpec(**options))


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(**options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def splits(dataset: Dataset) -> dict[str, ImageSet]:
    assert dataset.test is not None
    return {"train": dataset.train, "val": dataset.val, "test": dataset.test}


def test_digits_are_cut_into_three_splits_of_matching_arrays() -> None:
    dataset = load(test_fraction=0.4)

    assert describe_counts(dataset) == "train 969 · val 109 · test 719 images, 10 classes, 1x8x8"
    for split in splits(dataset).values():
        assert split.images.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert split.labels.dtype == np.int64
        assert split.indices.dtype == np.int64
        assert len(split.images) == len(split.labels) == len(split.indices) == len(split)
    together = np.concatenate([split.indices for split in splits(dataset).values()])
    assert sorted(together.tolist()) == list(range(1797))


def test_each_image_keeps_its_own_label_and_index() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()

    for split in splits(load(test_fraction=0.4, labels_per_class=12)).values():
        assert np.array_equal(split.labels, digits.target[split.indices])
        expected = np.rint(digits.images[split.indices] * 255 / 16)
        assert np.array_equal(split.images[:, 0], expected)


def test_mean_and_deviation_are_those_of_the_scaled_training_pixels() -> None:
    dataset = load(test_fraction=0.4, limit=200, grey_to_rgb=True)

    scaled = dataset.train.images.astype(np.float64) / 255
    assert dataset.mean == pytest.approx(scaled.mean(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert dataset.std == pytest.approx(scaled.std(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert len(dataset.mean) == 3


def test_every_setting_of_pixels_and_cuts_changes_the_outcome() -> None:
    base: dict[str, Any] = {"test_fraction": 0.4}
    variants: list[dict[str, Any]] = [
        {},
        {"test_fraction": 0.3},
        {"val_fraction": 0.2},
        {"limit": 100},
        {"labels_per_class": 10},
        {"split_seed": 1},
        {"resize": 16},
        {"resize": (16, 12)},
        {"grey_to_rgb": True},
        {"num_classes": 11},
    ]

    fingerprints = [load(**(base | variant)).fingerprint for variant in variants]

    assert len(set(fingerprints)) == len(variants)
    assert all(len(fingerprint) == 16 and int(fingerprint, 16) for fingerprint in fingerprints)
    assert load(**base).fingerprint == fingerprints[0]


def test_another_label_or_another_place_in_the_source_changes_the_fingerprint(
    tmp_path: Path, write_parquet: Write, make_png: Callable[..., bytes]
) -> None:
    write_parquet(tmp_path / "test.parquet", [0, 1])
    fingerprints = []
    for number, labels in enumerate(([0] * 10 + [1] * 10, [1] * 10 + [0] * 10)):
        path = write_parquet(tmp_path / f"{number}.parquet", labels, images=[make_png(1)] * 20)
        options: dict[str, Any] = {"source": "parquet", "path": str(path)}
        options["normalize"] = {"mean": [0.5], "std": [0.5]}
        options["test_path"] = str(tmp_path / "test.parquet")
        # Equal pixels and classes in blocks: files differ in labels alone, seeds in indices.
        fingerprints += [load(**options, split_seed=seed).fingerprint for seed in (0, 1)]

    assert len(set(fingerprints)) == 4


def test_order_and_augmentation_do_not_change_the_fingerprint() -> None:
    one = load(test_fraction=0.4)
    other = load(test_fraction=0.4, seed=5, flip=False, augment="none")

    assert one.fingerprint == other.fingerprint


def test_resize_and_grey_to_rgb_shape_every_split() -> None:
    dataset = load(test_fraction=0.4, resize=(16, 12), grey_to_rgb=True)

    assert {split.images.shape[1:] for split in splits(dataset).values()} == {(3, 16, 12)}
    assert np.array_equal(dataset.train.images[:, 0], dataset.train.images[:, 2])


def test_a_dataset_travels_without_copying_its_pixels() -> None:
    dataset = load(test_fraction=0.4)
    buffers: list[pickle.PickleBuffer] = []

    header = pickle.dumps(dataset, protocol=5, buffer_callback=buffers.append)
    copy = pickle.loads(header, buffers=buffers)

    assert len(header) < 4096
    assert sum(buffer.raw().nbytes for buffer in buffers) == 1797 * (64 + 8 + 8)
    assert np.shares_memory(copy.train.images, dataset.train.images)
    assert copy.fingerprint == dataset.fingerprint


def test_the_cifar_layout_uses_its_own_test_split(tmp_path: Path, write_cifar: Write) -> None:
    write_cifar(tmp_path, "cifar10")

    dataset = load(source="cifar10", path=str(tmp_path))

    assert describe_counts(dataset) == "train 180 · val 20 · test 40 images, 10 classes, 3x32x32"
    assert dataset.test is not None
    assert dataset.test.indices.tolist() == list(range(40))
    assert dataset.class_names[3] == "class3"


def test_an_image_folder_becomes_a_dataset(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path / "train", {"ant": 20, "bee": 10})
    write_folder(tmp_path / "test", {"bee": 4})

    dataset = load(source="imagefolder", path=str(tmp_path))

    assert describe_counts(dataset) == "train 27 · val 3 · test 4 images, 2 classes, 1x4x4"
    assert dataset.class_names == ("ant", "bee")
    # Image number i of a class has grey value i, and the ants come first.
    for split in (dataset.train, dataset.val):
        values = np.where(split.indices < 20, split.indices, split.indices - 20)
        assert np.array_equal(split.images[:, 0, 0, 0], values)
        assert np.array_equal(split.labels, (split.indices >= 20).astype(int))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_parquet_shards_become_a_dataset(tmp_path: Path, write_parquet: Write, scheme: str) -> None:
    write_parquet(tmp_path / "train" / "0.parquet", [0, 1] * 10, row_group_size=7)
    write_parquet(tmp_path / "train" / "1.parquet", [1, 0] * 10, first_value=20)
    write_parquet(tmp_path / "test.parquet", [0, 1])

    dataset = load(
        source="parquet", path=f"{scheme}{tmp_path}/train", test_path=f"{scheme}{tmp_path}/test*"
    )

    assert describe_counts(dataset) == "train 36 · val 4 · test 2 images, 2 classes, 1x4x4"
    for split in (dataset.train, dataset.val):
        assert np.array_equal(split.images[:, 0, 0, 0], split.indices)
    assert dataset.class_names == ("0", "1")


def test_real_cifar_parquet_is_read_with_its_published_counts() -> None:
    if not CIFAR10.is_dir():
        pytest.skip(f"the CIFAR-10 Parquet folder is not at {CIFAR10}")

    dataset = load(
        source="parquet",
        path=str(CIFAR10 / "train-*.parquet"),
        test_path=str(CIFAR10 / "test.parquet"),
        limit=4000,
    )

    assert (
        describe_counts(dataset)
        == "train 4,000 · val 5,000 · test 2,000 images, 10 classes, 3x32x32"
    )
    assert dataset.class_names[:2] == ("airplane", "automobile")
    assert np.bincount(dataset.val.labels).tolist() == [500] * 10
    assert np.bincount(splits(dataset)["test"].labels).tolist() == [200] * 10
    # The data set's usual per-channel means, which 4,000 images meet within a hundredth.
    assert dataset.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.01)


def test_a_given_test_split_keeps_validation_the_same_whatever_training_gets(
    tmp_path: Path, write_parquet: Write
) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 50)
    write_parquet(tmp_path / "test.parquet", [0, 1])
    paths = {
        "path": str(tmp_path / "train.parquet"),
        "test_path": str(tmp_path / "test.parquet"),
    }

    full, limited, few = (
        load(source="parquet", **paths, **thinning)
        for thinning in ({}, {"limit": 9}, {"labels_per_class": 3})
    )

    assert len(limited.train) == 9
    assert np.bincount(few.train.labels).tolist() == [3, 3]
    for other in (limited, few):
        assert np.array_equal(other.val.images, full.val.images)
        assert not np.isin(other.train.indices, full.val.indices).any()


def damaged_folder(tmp_path: Path, write_folder: Write) -> Path:
    write_folder(tmp_path, {"ant": 20, "bee": 20})
    (tmp_path / "bee" / "005.png").write_bytes(b"junk")
    return tmp_path


def test_a_damaged_image_is_named(tmp_path: Path, write_folder: Write) -> None:
    folder = damaged_folder(tmp_path, write_folder)

    message = refusal(source="imagefolder", path=str(folder), test_fraction=0.2)

    assert message.startswith(f"{folder / 'bee' / '005.png'}: cannot be decoded")


def test_a_damaged_parquet_row_is_named(
    tmp_path: Path, write_parquet: Write, make_png: Callable[..., bytes]
) -> None:
    images = [make_png(row) for row in range(20)]
    images[17] = images[17][:-20]
    write_parquet(tmp_path / "shard.parquet", [0, 1] * 10, images=images)

    message = refusal(source="parquet", path=str(tmp_path), test_fraction=0.2)

    assert message.startswith("shard.parquet row 17: ")


def test_skipping_drops_the_damaged_image_and_moves_no_other(
    tmp_path: Path, write_folder: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {"ant": 20, "bee": 20})
    options: dict[str, Any] = {
        "source": "imagefolder",
        "path": str(tmp_path),
        "test_fraction": 0.2,
        "on_error": "skip",
    }
    whole = load(**options)
    (tmp_path / "bee" / "005.png").write_bytes(b"junk")

    with caplog.at_level(logging.WARNING):
        rest = load(**options)

    assert (whole.skipped, rest.skipped) == (0, 1)
    assert "1 of 40 images" in caplog.text
    assert "005.png" in caplog.text
    for name, split in splits(whole).items():
        expected = split.indices[split.indices != 25]
        assert splits(rest)[name].indices.tolist() == expected.tolist()
        assert np.array_equal(splits(rest)[name].images, split.images[split.indices != 25])


def test_skipped_images_of_a_given_test_split_are_counted_too(
    tmp_path: Path, write_folder: Write
) -> None:
    write_folder(tmp_path / "train", {"ant": 20, "bee": 20})
    write_folder(tmp_path / "test", {"ant": 3})
    for damaged in ("train/ant/000.png", "train/bee/001.png", "test/ant/002.png"):
        (tmp_path / damaged).write_bytes(b"junk")

    dataset = load(source="imagefolder", path=str(tmp_path), on_error="skip")

    assert dataset.skipped == 3
    assert sum(len(split) for split in splits(dataset).values()) == 40


def test_skipping_a_whole_split_is_an_error(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path / "train", {"ant": 20, "bee": 20})
    write_folder(tmp_path / "test", {"ant": 1})
    (tmp_path / "test" / "ant" / "000.png").write_bytes(b"junk")

    message = refusal(source="imagefolder", path=str(tmp_path), on_error="skip")

    assert message.startswith("none of 1 images could be decoded")


def test_an_image_that_no_split_uses_is_not_decoded(tmp_path: Path, write_folder: Write) -> None:
    folder = write_folder(tmp_path, {"ant": 20, "bee": 20})
    options: dict[str, Any] = {
        "source": "imagefolder",
        "path": str(folder),
        "test_fraction": 0.1,
        "limit": 2,
    }
    used = np.concatenate([split.indices for split in splits(load(**options)).values()])
    unused = int(np.setdiff1d(np.arange(40), used)[0])
    (folder / ("ant" if unused < 20 else "bee") / f"{unused % 20:03}.png").write_bytes(b"junk")

    assert len(load(**options).train) == 2


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([], {}, "holds no images"),
        ([1] * 10, {"num_classes": 3}, "are of class '1': at least two classes are needed"),
        ([0] * 10, {}, "are of class '0': at least two classes are needed"),
        ([0, 1, -1] * 5, {}, "shard.parquet row 2: label -1 is outside 0..1"),
        ([0, 1, 2] * 5, {"num_classes": 2}, "shard.parquet row 2: label 2 is outside 0..1"),
        ([1, 2] * 5, {}, "labels go up to 2, but no training image has label 0"),
        ([0, 1, 10**15] * 5, {}, "no training image has label 2: number classes 0, 1"),
        ([0, 1] * 5, {"limit": 9}, "data.limit 9 is more than"),
        ([0, 1] * 5, {"labels_per_class": 5}, "data.labels_per_class 5 is more than"),
    ],
)
def test_labels_and_counts_that_cannot_be_are_refused(
    tmp_path: Path, write_parquet: Write, labels: list[int], options: dict[str, Any], message: str
) -> None:
    path = write_parquet(tmp_path / "shard.parquet", labels)

    found = refusal(source="parquet", path=str(path), test_fraction=0.1, **options)

    assert message in found


def test_named_classes_bound_the_labels(tmp_path: Path, write_parquet: Write) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1, 2], metadata={"classes": "ant,bee"})

    assert "a.parquet row 2: label 2 is outside 0..1" in refusal(
        source="parquet", path=str(path), test_fraction=0.1
    )


def test_a_test_label_outside_the_range_is_refused(tmp_path: Path, write_parquet: Write) -> None:
    train = write_parquet(tmp_path / "train.parquet", [0, 1] * 5)
    test = write_parquet(tmp_path / "test.parquet", [0, 2])

    message = refusal(source="parquet", path=str(train), test_path=str(test))

    assert message.startswith("test.parquet row 1: label 2 is outside 0..1")


def test_an_empty_test_split_is_refused(tmp_path: Path, write_parquet: Write) -> None:
    train = write_parquet(tmp_path / "train.parquet", [0, 1] * 5)
    test = write_parquet(tmp_path / "test.parquet", [])

    message = refusal(source="parquet", path=str(train), test_path=str(test))

    assert message == f"test split of {test} holds no images"


def test_more_classes_than_seen_are_allowed_and_named_by_number(
    tmp_path: Path, write_parquet: Write
) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 2] * 10, metadata={"classes": "ant,bee,cat"})

    dataset = load(source="parquet", path=str(path), test_fraction=0.1, num_classes=5)

    assert dataset.num_classes == 5
    assert dataset.class_names == ("ant", "bee", "cat", "3", "4")


def test_a_source_without_test_split_asks_for_one(
    tmp_path: Path, write_folder: Write, write_parquet: Write
) -> None:
    folder = write_folder(tmp_path / "images", {"ant": 9, "bee": 9})
    file = write_parquet(tmp_path / "a.parquet", [0, 1] * 9)
    remedy = "has no test split: set data.test_path or data.test_fraction"

    assert refusal(source="imagefolder", path=str(folder)) == f"{folder} {remedy}"
    assert refusal(source="parquet", path=str(file)) == f"{file} {remedy}"
    assert refusal() == "digits has no test split: set data.test_fraction"


def test_a_test_fraction_beside_a_test_split_is_refused(
    tmp_path: Path, write_folder: Write
) -> None:
    write_folder(tmp_path / "train", {"ant": 9, "bee": 9})
    write_folder(tmp_path / "test", {"ant": 9})

    message = refusal(source="imagefolder", path=str(tmp_path), test_fraction=0.5)

    assert message == f"{tmp_path} has its own test split: drop data.test_fraction"


def test_a_test_split_of_other_size_or_channels_is_refused(
    tmp_path: Path, write_folder: Write, write_parquet: Write, make_png: Callable[..., bytes]
) -> None:
    write_folder(tmp_path / "train", {"ant": 9, "bee": 9})
    write_folder(tmp_path / "large", {"ant": 2}, size=(6, 4))
    (tmp_path / "colour" / "ant").mkdir(parents=True)
    (tmp_path / "colour" / "ant" / "0.png").write_bytes(make_png((1, 2, 3)))
    source = {"source": "imagefolder", "path": str(tmp_path / "train")}

    size = refusal(**source, test_path=str(tmp_path / "large"))
    channels = refusal(**source, test_path=str(tmp_path / "colour"))

    assert "1x4x4 and test images 1x6x4" in size
    assert size.endswith("set data.resize")
    assert "1x4x4 and test images 3x4x4" in channels
    assert channels.endswith("set data.grey_to_rgb")
    assert load(**source, test_path=str(tmp_path / "large"), resize=4).test is not None
    assert load(**source, test_path=str(tmp_path / "colour"), grey_to_rgb=True).test is not None


def test_mixed_sizes_name_two_files_and_resize_mends_them(
    tmp_path: Path, write_folder: Write
) -> None:
    write_folder(tmp_path, {"ant": 9})
    write_folder(tmp_path, {"bee": 9}, size=(6, 4))
    options: dict[str, Any] = {
        "source": "imagefolder",
        "path": str(tmp_path),
        "test_fraction": 0.2,
    }

    message = refusal(**options)

    assert f"{tmp_path / 'ant'}" in message
    assert f"{tmp_path / 'bee'}" in message
    assert "4x4" in message
    assert "6x4" in message
    assert message.endswith("set data.resize")
    assert load(**options, resize=5).train.images.shape[1:] == (1, 5, 5)


def test_images_of_one_value_need_a_normalization(
    tmp_path: Path, write_parquet: Write, make_png: Callable[..., bytes]
) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1] * 9, images=[make_png(7)] * 18)
    options: dict[str, Any] = {"source": "parquet", "path": str(path), "test_fraction": 0.2}

    assert "set data.normalize" in refusal(**options)
    dataset = load(**options, normalize={"mean": [0.5], "std": [0.5]})
    assert dataset.mean == pytest.approx((7 / 255,))
    assert dataset.std == (0.0,)


def test_an_uneven_number_of_images_per_class_is_fine(tmp_path: Path, write_parquet: Write) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0] * 100 + [1] * 3)

    dataset = load(source="parquet", path=str(path), test_fraction=0.2)

    # Test takes 20 and 1; validation 8 of 80 and at least 1 of 2.
    assert np.bincount(dataset.train.labels).tolist() == [72, 1]


def test_nothing_is_written_and_no_warning_raised(tmp_path: Path, write_folder: Write) -> None:
    write_folder(tmp_path / "train", {"ant": 9, "bee": 9})
    write_folder(tmp_path / "test", {"ant": 9})
    before = sorted(tmp_path.rglob("*"))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(source="imagefolder", path=str(tmp_path))

    assert sorted(tmp_path.rglob("*")) == before

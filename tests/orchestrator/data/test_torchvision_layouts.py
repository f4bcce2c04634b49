"""STL-10 and Fashion-MNIST on disk, and fetching what is not there."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from fashion import FOLDER, needs_images
from read_sources import read, refusal

from orchestrator.data import load_dataset
from orchestrator.data.raw import RawImages
from orchestrator.spec import DataSpec

Write = Callable[..., Path]


def pixels(images: RawImages, positions: list[int]) -> np.ndarray:
    return np.stack(list(images.read(np.asarray(positions))))  # type: ignore[arg-type]


# STL-10


def test_stl10_is_read_as_torchvision_reads_it(tmp_path: Path, write_stl10: Write) -> None:
    folder = write_stl10(tmp_path)
    (folder / "unlabeled_X.bin").write_bytes(b"")  # torchvision looks whether it is there

    data = read(source="stl10", path=str(tmp_path))

    reference = torchvision.datasets.STL10.__new__(torchvision.datasets.STL10)
    reference.root = str(tmp_path)
    assert data.test is not None
    for split, images in (("train", data.train), ("test", data.test)):
        expected, labels = reference._STL10__loadfile(f"{split}_X.bin", f"{split}_y.bin")
        assert images.labels.tolist() == labels.tolist()
        everything = pixels(images, list(range(len(labels))))
        assert np.array_equal(everything, expected.transpose(0, 2, 3, 1))
    assert data.class_names is not None
    assert (data.class_names[0], data.class_names[9]) == ("airplane", "truck")
    assert data.train.name(3) == "train_X.bin image 3"


def test_a_cut_off_stl10_file_is_named(tmp_path: Path, write_stl10: Write) -> None:
    folder = write_stl10(tmp_path)
    with (folder / "train_X.bin").open("r+b") as file:
        file.truncate(29 * 3 * 96 * 96 + 5)

    message = refusal(source="stl10", path=str(tmp_path))

    assert message.startswith(f"{folder / 'train_X.bin'}: 801,797 bytes, where the 30 labels")


@pytest.mark.parametrize("source", ["stl10", "fashion_mnist", "cifar10"])
def test_missing_files_are_named_with_their_folder(tmp_path: Path, source: str) -> None:
    message = refusal(source=source, path=str(tmp_path))

    folder, first, last = {
        "stl10": ("stl10_binary", "train_X.bin", "class_names.txt"),
        "fashion_mnist": (
            "FashionMNIST/raw",
            "train-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        ),
        "cifar10": ("cifar-10-batches-py", "data_batch_1", "batches.meta"),
    }[source]
    assert message.startswith(f"data.path: {tmp_path / folder} lacks {first}, ")
    assert f"{last}: put torchvision's {source} layout there" in message
    assert "data.download: true" in message
    assert list(tmp_path.iterdir()) == []
    assert "is read from a local folder" in refusal(source=source, path="s3://bucket/x")


# Fashion-MNIST


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("inside", ["FashionMNIST/raw", "."])
def test_fashion_mnist_is_found_compressed_or_not_in_either_layout(
    tmp_path: Path, write_fashion_mnist: Write, compressed: bool, inside: str
) -> None:
    write_fashion_mnist(tmp_path / inside, compressed=compressed)

    data = read(source="fashion_mnist", path=str(tmp_path))

    assert data.test is not None
    random = np.random.default_rng(0)
    for images, count in ((data.train, 30), (data.test, 10)):
        expected = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        assert np.array_equal(pixels(images, list(range(count)))[..., 0], expected)
        assert images.labels.tolist() == [number % 10 for number in range(count)]
    assert data.class_names == tuple(torchvision.datasets.FashionMNIST.classes)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no gzip", "cannot be read"),
        (gzip.compress(b"")[:12], "cannot be read"),
        (gzip.compress(b""), "not an IDX file"),
        (gzip.compress(b"\0\0\x08\x03\0\0"), "not an IDX file"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0"), "not an IDX file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"), "not an IDX file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03abc"), "not one image and one label each"),
    ],
    # Compressed bytes tell the time, and processes that share tests must agree on their names.
    ids=["not gzip", "cut off", "empty", "half a head", "of floats", "too short", "no images"],
)
def test_a_damaged_idx_file_is_named(
    tmp_path: Path, write_fashion_mnist: Write, content: bytes, text: str
) -> None:
    write_fashion_mnist(tmp_path, compressed=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)

    message = refusal(source="fashion_mnist", path=str(tmp_path))

    assert "train-images-idx3-ubyte" in message
    assert text in message


@needs_images
def test_the_real_fashion_mnist_has_its_published_counts() -> None:
    dataset = load_dataset(
        DataSpec(source="fashion_mnist", path=str(FOLDER), grey_to_rgb=True, split_seed=1)
    )

    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (54_000, 6_000, 10_000)
    for split, count in ((dataset.train, 5_400), (dataset.val, 600), (dataset.test, 1_000)):
        assert np.bincount(split.labels).tolist() == [count] * 10
    assert dataset.input_shape == (3, 28, 28)
    assert np.array_equal(dataset.train.images[:, 0], dataset.train.images[:, 2])
    # Published mean and deviation of the training images; nine in ten of them are here.
    assert dataset.mean == pytest.approx([0.2860] * 3, abs=1e-3)
    assert dataset.std == pytest.approx([0.3530] * 3, abs=1e-3)


# Downloads, from a server on this machine in place of the ones on the internet


class Server:
    """Serves a folder, and counts what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        log = self.requests

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                log.append(self.path)
                super().do_GET()

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    running = Server(folder)
    yield running
    running.close()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def serve_cifar100(server: Server, write_cifar: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an archive of the layout on the server, and tell torchvision of its checksums."""
    made = write_cifar(server.folder.parent / "made", "cifar100")
    archive = server.folder / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made, arcname=made.name)
    cifar = torchvision.datasets.CIFAR100
    monkeypatch.setattr(cifar, "url", f"{server.url}/{archive.name}")
    monkeypatch.setattr(cifar, "tgz_md5", md5(archive))
    monkeypatch.setattr(cifar, "train_list", [["train", md5(made / "train")]])
    monkeypatch.setattr(cifar, "test_list", [["test", md5(made / "test")]])
    meta = {"filename": "meta", "key": "fine_label_names", "md5": md5(made / "meta")}
    monkeypatch.setattr(cifar, "meta", meta)


def test_what_is_missing_is_fetched_once_and_leaves_no_scratch(
    tmp_path: Path, server: Server, write_cifar: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_cifar100(server, write_cifar, monkeypatch)
    root = tmp_path / "data"

    assert len(read(source="cifar100", path=str(root), download=True).train.labels) == 40
    asked = list(server.requests)
    assert len(read(source="cifar100", path=str(root), download=True).train.labels) == 40

    assert asked
    assert server.requests == asked
    assert {entry.name for entry in root.iterdir()} == {"cifar-100-python", ".cifar100.lock"}
    assert len(read(source="cifar100", path=str(root)).train.labels) == 40


def test_readers_that_start_together_fetch_once(
    tmp_path: Path, server: Server, write_cifar: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_cifar100(server, write_cifar, monkeypatch)
    read(source="cifar100", path=str(tmp_path / "alone"), download=True)
    of_one = list(server.requests)  # torchvision asks more than once
    root = tmp_path / "data"

    def fetch(_: int) -> int:
        return len(read(source="cifar100", path=str(root), download=True).train.labels)

    # Threads that open the lock each for itself exclude each other as processes do.
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(fetch, range(3))) == [40, 40, 40]
    assert server.requests == 2 * of_one


def test_an_archive_with_another_checksum_is_refused_and_nothing_is_left(
    tmp_path: Path, server: Server, write_cifar: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_cifar100(server, write_cifar, monkeypatch)
    (server.folder / "cifar-100-python.tar.gz").write_bytes(b"something else")
    root = tmp_path / "data"

    message = refusal(source="cifar100", path=str(root), download=True)

    assert "CIFAR100 could not be fetched" in message
    assert f"put its files in {root / 'cifar-100-python'}" in message
    assert [entry.name for entry in root.iterdir()] == [".cifar100.lock"]


def test_fashion_mnist_is_fetched_from_its_mirror(
    tmp_path: Path, server: Server, write_fashion_mnist: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fashion_mnist(server.folder, compressed=True)
    fashion = torchvision.datasets.FashionMNIST
    names = [name for name, _ in fashion.resources]
    monkeypatch.setattr(fashion, "mirrors", [f"{server.url}/"])
    checksums = [(name, md5(server.folder / name)) for name in names]
    monkeypatch.setattr(fashion, "resources", checksums)
    root = tmp_path / "data"

    data = read(source="fashion_mnist", path=str(root), download=True)

    assert len(data.train.labels) == 30
    assert (root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").is_file()


def test_stl10_is_fetched_as_an_archive(
    tmp_path: Path, server: Server, write_stl10: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_stl10(tmp_path / "made")
    (made / "unlabeled_X.bin").write_bytes(b"")
    archive = server.folder / "stl10_binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made, arcname=made.name)
    stl10 = torchvision.datasets.STL10
    monkeypatch.setattr(stl10, "url", f"{server.url}/{archive.name}")
    monkeypatch.setattr(stl10, "tgz_md5", md5(archive))
    root = tmp_path / "data"

    data = read(source="stl10", path=str(root), download=True)

    assert len(data.train.labels) == 30

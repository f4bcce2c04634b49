"""Checkpoints are whole or not there, whatever happens to the process or the disk."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoints import Best, Checkpoint, Checkpoints
from orchestrator.storage import Folder

REPOSITORY = Path(__file__).resolve().parents[2]


def checkpoint(epoch: int, *, best: int = 1) -> Checkpoint:
    return Checkpoint(
        epoch=epoch,
        best=Best(best, 50.0 + best),
        history=[{"train/loss": 1.0 / e, "val/top1": 50.0 + e} for e in range(1, epoch + 1)],
        state={"distiller": {"weight": torch.full((3,), float(epoch))}, "scaler": {}},
    )


@pytest.fixture(params=["path", "uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    path = tmp_path / "checkpoints"
    return Folder(str(path) if request.param == "path" else path.as_uri())


def test_what_is_saved_is_loaded_again(folder: Folder) -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    half = torch.tensor([1.5, -0.25], dtype=torch.bfloat16)
    state = {"distiller": network.state_dict(), "optimizer": optimizer.state_dict(), "half": half}
    history = [{"train/loss": 0.1 + 0.2, "val/loss": float("inf")}]
    Checkpoints(folder, keep=1).save(Checkpoint(1, Best(1, 100 / 3), history, state))

    found = Checkpoints(folder, keep=1).latest()
    assert found is not None
    assert found.epoch == 1
    assert found.best == Best(1, 100 / 3)
    assert found.history == history
    assert torch.equal(found.state["distiller"]["weight"], network.weight)
    assert torch.equal(found.state["half"], half)
    moments = found.state["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(moments, optimizer.state_dict()["state"][0]["exp_avg"])


def test_no_folder_holds_no_checkpoint(folder: Folder) -> None:
    assert Checkpoints(folder, keep=1).latest() is None
    assert Checkpoints(folder, keep=1).epochs() == []


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(1, 6, [6]), (2, 2, [2, 5, 6]), (2, 5, [5, 6]), (9, 1, [1, 2, 3, 4, 5, 6])],
)
def test_the_newest_and_the_best_are_kept(
    folder: Folder, keep: int, best: int, left: list[int]
) -> None:
    checkpoints = Checkpoints(folder, keep=keep)
    for epoch in range(1, 7):
        checkpoints.save(checkpoint(epoch, best=min(epoch, best)))
    assert checkpoints.epochs() == left
    files = {f"epoch_{epoch:04d}{end}" for epoch in left for end in (".json", ".pt")}
    assert set(folder.names()) == files


def _tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "torn weights": lambda folder: _tear(folder / "epoch_0003.pt"),
    "a flipped bit": lambda folder: _flip_a_bit(folder / "epoch_0003.pt"),
    "empty weights": lambda folder: (folder / "epoch_0003.pt").write_bytes(b""),
    "no weights": lambda folder: (folder / "epoch_0003.pt").unlink(),
    "no digest": lambda folder: (folder / "epoch_0003.json").unlink(),
    "torn digest": lambda folder: _tear(folder / "epoch_0003.json"),
    "digest of another": lambda folder: (folder / "epoch_0003.json").write_bytes(
        (folder / "epoch_0002.json").read_bytes()
    ),
    "no digest inside": lambda folder: (folder / "epoch_0003.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: str
) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), keep=3)
    for epoch in (1, 2, 3):
        checkpoints.save(checkpoint(epoch))
    DAMAGE[damage](tmp_path)
    found = checkpoints.latest()
    assert found is not None
    assert found.epoch == 2
    assert torch.equal(found.state["distiller"]["weight"], torch.full((3,), 2.0))


def test_a_damaged_checkpoint_is_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), keep=3)
    checkpoints.save(checkpoint(3))
    _tear(tmp_path / "epoch_0003.pt")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest() is None
    assert "epoch_0003" in caplog.text
    assert str(tmp_path) in caplog.text


def test_a_damaged_checkpoint_can_be_written_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), keep=3)
    checkpoints.save(checkpoint(3))
    _tear(tmp_path / "epoch_0003.pt")
    checkpoints.save(checkpoint(3))
    found = checkpoints.latest()
    assert found is not None
    assert found.epoch == 3


def test_epochs_are_in_order_of_their_number_beyond_four_digits(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), keep=3)
    for epoch in (9_999, 10_000):
        checkpoints.save(checkpoint(1)._replace(epoch=epoch, best=Best(epoch, 1.0)))
    assert checkpoints.epochs() == [9_999, 10_000]
    found = checkpoints.latest()
    assert found is not None
    assert found.epoch == 10_000


SAVING_FOR_EVER = """
import itertools, sys, torch
from orchestrator.checkpoints import Best, Checkpoint, Checkpoints
from orchestrator.storage import Folder
checkpoints = Checkpoints(Folder(sys.argv[1]), keep=2)
for epoch in itertools.count(1):
    state = {"weight": torch.full((200_000,), float(epoch))}
    checkpoints.save(Checkpoint(epoch, Best(1, 1.0), [], state))
"""


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    process = subprocess.Popen([sys.executable, "-c", SAVING_FOR_EVER, str(folder)], cwd=REPOSITORY)
    checkpoints = Checkpoints(Folder(str(folder)), keep=2)
    try:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("epoch_*.json"))) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.123)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    names = {epoch: checkpoints.load(epoch) for epoch in checkpoints.epochs()}
    assert len(names) >= 2
    for epoch, found in names.items():
        assert found is not None
        assert torch.equal(found.state["weight"], torch.full((200_000,), float(epoch)))

"""Checkpoints of one run: whole or absent, the newest few and the best, found after any crash.

A checkpoint is two files, ``epoch_0003.pt`` and then ``epoch_0003.json`` with the first one's
SHA-256. Without a matching JSON it does not count, so neither a crash between the two nor a torn
file can be resumed from.
"""

from __future__ import annotations

import hashlib
import io
import logging
from typing import Any, NamedTuple

import torch

from orchestrator.errors import RunFailed
from orchestrator.storage import Folder

logger = logging.getLogger(__name__)


class Best(NamedTuple):
    """The best epoch so far."""

    epoch: int
    """Counted from 1."""
    top1: float
    """Validation top-1 in percent."""


class Checkpoint(NamedTuple):
    """All that training needs to go on after an epoch."""

    epoch: int
    """The finished epoch, counted from 1."""
    best: Best
    """The best epoch up to and including this one."""
    history: list[dict[str, float]]
    """Metrics of every finished epoch, in order."""
    state: dict[str, Any]
    """State dicts by name: what is learned, the optimizer, the loss scaler."""


class Checkpoints:
    """The checkpoints in one folder. One process writes; any number may read."""

    def __init__(self, folder: Folder, *, keep: int) -> None:
        """Args:
        folder: where they lie.
        keep: how many of the newest stay, beside the best.
        """
        self._folder = folder
        self._keep = keep

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete those that need not be kept any more.

        Raises:
            RunFailed: the disk is full or the folder cannot be written; older ones are whole.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint._asdict() | {"best": tuple(checkpoint.best)}, buffer)
        content = buffer.getvalue()
        name = _name(checkpoint.epoch)
        digest = hashlib.sha256(content).hexdigest()
        try:
            self._folder.write(f"{name}.pt", content)
            self._folder.write_json(
                f"{name}.json", {"sha256": digest, "best_epoch": checkpoint.best.epoch}
            )
        except OSError as error:
            raise RunFailed(
                f"the checkpoint of epoch {checkpoint.epoch} could not be written to "
                f"{self._folder.location}: {error.strerror or error}. Older ones are whole: make "
                "room, and the same command goes on from the newest"
            ) from error
        epochs = self.epochs()
        newest = epochs[-self._keep :]
        # The best of each kept one: should the newest be damaged, the one before needs its own.
        kept = {*newest, *(self._manifest(epoch).get("best_epoch") for epoch in newest)}
        for epoch in set(epochs) - kept:
            self._folder.delete(f"{_name(epoch)}.json")
            self._folder.delete(f"{_name(epoch)}.pt")

    def epochs(self) -> list[int]:
        """Epochs with a complete checkpoint by name, ascending; their content is not read."""
        names = set(self._folder.names())
        return sorted(
            int(name[6:-5])
            for name in names
            if name.startswith("epoch_") and name.endswith(".json") and f"{name[:-5]}.pt" in names
        )

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole."""
        for epoch in reversed(self.epochs()):
            checkpoint = self.load(epoch)
            if checkpoint is not None:
                return checkpoint
        return None

    def load(self, epoch: int) -> Checkpoint | None:
        """One checkpoint, on the CPU; None, with a warning, when it is not whole."""
        name = _name(epoch)
        content = self._folder.read(f"{name}.pt")
        if content is None or hashlib.sha256(content).hexdigest() != self._manifest(epoch).get(
            "sha256"
        ):
            logger.warning("checkpoint %s in %s is damaged: passed over", name, self._folder)
            return None
        values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return Checkpoint(**{**values, "best": Best(*values["best"])})

    def _manifest(self, epoch: int) -> dict[str, Any]:
        """What was written beside a checkpoint; empty when that is damaged or absent."""
        try:
            manifest = self._folder.read_json(f"{_name(epoch)}.json")
        except ValueError:
            return {}
        return manifest if isinstance(manifest, dict) else {}


def _name(epoch: int) -> str:
    return f"epoch_{epoch:04d}"

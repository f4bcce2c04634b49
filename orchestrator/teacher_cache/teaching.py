"""The teacher's answers from the cache; those that are not there are computed and left in it.

An epoch's order is cut into chunks of some thousand images. A run that needs a chunk reads it, or
makes it if nobody is making it. Where somebody is, it makes a later one meanwhile: runs that start
at the same time and cut alike share the work, and none of it is done twice.

Whatever happens to the cache, training goes on: what cannot be had from it is computed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from dcd_core import HintedOutput, sample_order, shares
from orchestrator.batches import Recipe, to_device
from orchestrator.evaluation import Images
from orchestrator.reporter import Ranks
from orchestrator.teacher_cache.cache import Cache, CacheError
from orchestrator.teacher_cache.rows import Rows
from orchestrator.teacher_cache.shelf import Piece
from orchestrator.teacher_cache.tables import Table, make_table
from orchestrator.teaching import Answers, LiveTeaching

logger = logging.getLogger(__name__)

CHUNKS, LEAST_ROWS, MOST_BYTES = 32, 1024, 64 * 2**20
"""An epoch has 32 chunks, so that as many runs can share it, but a chunk has a thousand images, so
that its file's costs do not count, and 64 MiB at most."""
PATIENCE_S = 300.0
"""How long a step waits for what other processes are making; one that was halted never will."""
_USE_EVERY_S = 60.0

NO_ROOM = "there is no room for more (teacher_cache.max_gib)"

warned: set[tuple[str, str]] = set()
"""What this process has warned of: one that trains many students says it once."""


class CachedTeaching:
    """A teacher whose answers are read where they are known.

    Args:
        live: the teacher.
        cache: of this teacher, on these images, in this precision.
        training: the images.
        recipe: their augmentation and batches.
        ranks: the processes that train together.
        own_rows: whether each makes its own rows only. It needs others' where images come again in
            another order.

    What is kept has the precision that the live teacher's answers are rounded to, so that the
    losses do not depend on what is there.
    """

    def __init__(
        self,
        live: LiveTeaching,
        cache: Cache,
        *,
        training: Images,
        recipe: Recipe,
        ranks: Ranks,
        own_rows: bool = True,
    ) -> None:
        self._live = live
        self._cache = cache
        self._training = training
        self._recipe = recipe
        self._ranks = ranks
        self._own_rows = own_rows and ranks.size > 1
        self.feature_dim = live.feature_dim
        row_bytes = (live.num_classes + live.feature_dim) * live.dtype.itemsize
        self._chunk_size = _chunk_size(len(training.labels), recipe.batch_size, row_bytes=row_bytes)
        self._table: Table = make_table(len(training.labels), ranks.device, bytes_per_row=row_bytes)
        self._view: int | None = None
        self._in_order = True
        self._chunks: list[Tensor] = []  # positions on the CPU
        self._known: Tensor  # (M,) bool
        self._opened: set[Piece] = set()
        self._ready: set[int] = set()
        self._given_up: set[int] = set()
        self._not_kept: str | None = None
        self._all_kept = True
        self._used_at = float("-inf")
        self._num_answered = self._num_computed = 0

    def begin(self, epoch: int) -> None:
        """Turn to the epoch's view."""
        view = self._recipe.view(epoch)
        # Later rounds go through the same images in another order.
        self._in_order = view == epoch
        self._not_kept, self._all_kept = None, True
        self._given_up.clear()
        self._num_answered = self._num_computed = 0
        self._used_at = float("-inf")
        self._use()
        if view == self._view:
            return
        self._view = view
        order = sample_order(self._recipe.data_seed, view, self._training.indices).cpu()  # (M,)
        self._chunks = list(order.split(self._chunk_size))
        self._known = torch.zeros(len(order), dtype=torch.bool)
        self._table.clear()
        self._opened.clear()
        self._ready.clear()

    def recall(self, positions: Tensor, *, place: int) -> Answers | None:
        """Read the rows; None where that cannot be."""
        self._num_answered += len(positions)
        chunks = [place // self._chunk_size] if self._in_order else range(len(self._chunks))
        ready = self._ensure(chunks)
        if not ready and not self._in_order:
            ready = bool(self._known[positions.cpu()].all())
        if ready and len(positions):
            return self._table.take(positions)
        self._num_computed += len(positions)
        return None

    def run(self, images: Tensor) -> Answers | HintedOutput:
        """Run the teacher."""
        return self._live.run(images)

    def metrics(self) -> dict[str, float]:
        """How much of the epoch this process did not compute."""
        if self._num_answered == 0:
            return {}
        saved = max(0, self._num_answered - self._num_computed)
        return {"time/teacher_cached_percent": 100 * saved / self._num_answered}

    def fill(self, epoch: int) -> str | None:
        """Have all of an epoch's rows in the cache; None, or why some are not."""
        self.begin(epoch)
        chunks = range(len(self._chunks))
        if not self._ensure(chunks):
            return self._not_kept or "another process did not finish its part"
        try:
            if not all([self._cache.publish(self._piece(chunk)) for chunk in chunks]):
                self._stop_keeping(NO_ROOM)
                self._all_kept = False
        except CacheError as error:
            return str(error)
        return None if self._all_kept else self._not_kept

    def _use(self) -> None:
        if time.monotonic() - self._used_at > _USE_EVERY_S:
            self._used_at = time.monotonic()
            try:
                self._cache.use()
            except CacheError as error:
                self._stop_keeping(str(error))

    def _ensure(self, chunks: Iterable[int]) -> bool:
        """Have the rows of chunks at hand; False when some have to be computed batch by batch."""
        self._use()
        missing = [c for c in chunks if c not in self._ready and c not in self._given_up]
        if missing:
            patience = [PATIENCE_S]
            for chunk in missing:
                try:
                    if not self._wait_for(chunk, patience):
                        self._given_up.add(chunk)
                except CacheError as error:
                    self._stop_keeping(str(error))
                    self._given_up.add(chunk)
        return all(chunk in self._ready for chunk in chunks)

    def _wait_for(self, chunk: int, patience: list[float]) -> bool:
        """Find a chunk, make it, or wait until another process has made it.

        Args:
            chunk: its number.
            patience: how many seconds of waiting are left, which this uses up.
        """
        while not self._find(chunk):
            if self._not_kept is not None:
                return False
            if self._make(chunk):
                return True
            later = range(chunk + 1, len(self._chunks))
            if any(self._make(other) for other in later if other not in self._ready):
                continue
            if patience[0] <= 0:
                return False
            # One that is there is just being fetched to this node.
            pause = min(self._cache.poll_s, 0.02 if self._cache.has(self._piece(chunk)) else 1.0)
            time.sleep(pause)
            patience[0] -= pause
        return True

    def _find(self, chunk: int) -> bool:
        """Open what there is of a chunk; whether that is all of it."""
        assert self._view is not None
        own, needed = self._piece(chunk), self._needed(chunk)
        if not self._known[needed].all() and self._cache.has(own):
            self._open(own)
        if not self._known[needed].all():
            # Cut otherwise, by a run with another batch size or number of workers.
            for piece in sorted(self._cache.pieces(self._view), key=lambda piece: piece.size):
                if piece.first < own.last and own.first < piece.last:
                    self._open(piece)
        if self._known[needed].all():
            self._ready.add(chunk)
        return chunk in self._ready

    def _open(self, piece: Piece) -> None:
        if piece not in self._opened and (rows := self._cache.open(piece)) is not None:
            self._add(piece, rows)

    def _add(self, piece: Piece, rows: Rows) -> None:
        self._table.add(rows)
        self._known[rows.positions] = True
        self._opened.add(piece)

    def _make(self, chunk: int) -> bool:
        """Compute a chunk unless it is there or another process does; whether it was computed."""
        piece = self._piece(chunk)
        if self._find(chunk) or self._is_to_come(piece):
            return False
        with self._cache.lease(piece) as mine:
            if not mine or self._is_to_come(piece):
                return False
            rows = self._compute(chunk)
            try:
                kept = self._cache.keep(piece, rows)
                if not kept:
                    self._stop_keeping(NO_ROOM)
                    self._all_kept = False
                # Rows that lie in a file take no memory of this process's own.
                self._add(piece, (self._cache.open(piece) if kept else None) or rows)
            except CacheError as error:
                self._stop_keeping(str(error))
                self._all_kept = False
                self._add(piece, rows)
            self._ready.add(chunk)
        return True

    def _is_to_come(self, piece: Piece) -> bool:
        """Whether a piece is there and only has to be read; not if it was, and lacks rows."""
        return self._cache.has(piece) and piece not in self._opened

    def _compute(self, chunk: int) -> Rows:
        """Run the teacher on the very batches that a run would have run it on."""
        assert self._view is not None
        recipe, training, device = self._recipe, self._training, self._ranks.device
        positions, logits, features = [], [], []
        for batch in self._batches(chunk):
            own = batch.to(training.indices.device)
            indices = to_device(training.indices[own], device)
            images = to_device(training.images[own], device)
            answers = self._live.run(recipe.augment(images, indices, self._view))
            positions.append(batch)
            logits.append(answers.logits.to(self._live.dtype))
            features.append(answers.features.to(self._live.dtype))
        rows = Rows(torch.cat(positions), torch.cat(logits).cpu(), torch.cat(features).cpu())
        self._num_computed += len(rows.positions)
        limit = torch.finfo(torch.float16).max
        if self._live.dtype == torch.float16 and any((p.abs() == limit).any() for p in rows[1:]):
            self._warn(
                "some of the teacher's features or logits are too large for fp16 and were cut to "
                "65504: teacher_cache.dtype bf16 can hold them"
            )
        return rows

    def _batches(self, chunk: int) -> list[Tensor]:
        """Positions of each batch of this rank's, or of all ranks' where rows are read by all."""
        found: list[Tensor] = []
        for step in self._chunks[chunk].split(self._recipe.batch_size):
            for micro in step.split(self._micro_batch_size):
                parts = micro.split(shares(len(micro), self._ranks.size))
                found += [parts[self._ranks.rank]] if self._own_rows else parts
        return [part for part in found if len(part)]

    def _needed(self, chunk: int) -> Tensor:
        """Positions of the rows that this rank reads; a rank may have none of the last few."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *self._batches(chunk)])

    def _piece(self, chunk: int) -> Piece:
        assert self._view is not None
        first = chunk * self._chunk_size
        last = first + len(self._chunks[chunk])
        if not self._own_rows:
            return Piece(self._view, first, last)
        rank, size, _ = self._ranks
        return Piece(self._view, first, last, rank, size, self._micro_batch_size)

    @property
    def _micro_batch_size(self) -> int:
        return self._recipe.batch_size // self._recipe.accumulate

    def _stop_keeping(self, reason: str) -> None:
        """For this epoch: what is there is read, and nothing is added."""
        self._not_kept = reason
        self._warn(
            f"the teacher's answers cannot be kept in {self._cache.location}: {reason}. The "
            "teacher is run for those that are not there"
        )

    def _warn(self, text: str) -> None:
        kind = text.split(":")[0]
        if (self._cache.location, kind) not in warned:
            warned.add((self._cache.location, kind))
            logger.warning("%s", text)


def _chunk_size(num_images: int, batch_size: int, *, row_bytes: int) -> int:
    """Images of a chunk: whole steps, so that no batch is cut in two."""
    rows = min(max(num_images / CHUNKS, LEAST_ROWS), MOST_BYTES / row_bytes)
    return max(1, round(rows / batch_size)) * batch_size

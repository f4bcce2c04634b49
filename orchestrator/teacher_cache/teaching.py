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

from dcd_core import sample_order, shares
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
_TELL_AFTER_S = 10.0
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
        dtype: of what is kept. What is computed without being kept is rounded to it too, so that
            the losses do not depend on what is there.
    """

    def __init__(
        self,
        live: LiveTeaching,
        cache: Cache,
        *,
        training: Images,
        recipe: Recipe,
        ranks: Ranks,
        dtype: torch.dtype,
        own_rows: bool = True,
    ) -> None:
        self._live = live
        self._cache = cache
        self._training = training
        self._recipe = recipe
        self._ranks = ranks
        self._dtype = dtype
        self._part = (ranks.rank, ranks.size) if own_rows else (0, 1)
        self.feature_dim = live.feature_dim
        row_bytes = (live.num_classes + live.feature_dim) * dtype.itemsize
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
        self._used_at = float("-inf")
        self._num_answered = self._num_computed = 0

    def begin(self, epoch: int) -> None:
        """Turn to the epoch's view."""
        view = self._recipe.view(epoch)
        # Later rounds go through the same images in another order.
        self._in_order = view == epoch
        self._not_kept = None
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

    def answers(self, images: Tensor, positions: Tensor, *, place: int) -> Answers:
        """Read the rows, or run the teacher where that cannot be."""
        self._num_answered += len(images)
        chunks = [place // self._chunk_size] if self._in_order else range(len(self._chunks))
        ready = self._ensure(chunks)
        if not ready and not self._in_order:
            ready = bool(self._known[positions.cpu()].all())
        if ready and len(images):
            return self._table.take(positions)
        self._num_computed += len(images)
        logits, features = self._live.run(images)
        return Answers(*(self._rounded(part).float() for part in (logits, features)))

    def metrics(self) -> dict[str, float]:
        """How much of the epoch this process did not compute."""
        if self._num_answered == 0:
            return {}
        saved = max(0, self._num_answered - self._num_computed)
        return {"time/teacher_cached_percent": 100 * saved / self._num_answered}

    def fill(self, epoch: int) -> str | None:
        """Have all of an epoch's rows in the cache; None, or why some are not."""
        self.begin(epoch)
        ready = self._ensure(range(len(self._chunks)))
        return self._not_kept or (None if ready else "another process did not finish its part")

    def _use(self) -> None:
        if time.monotonic() - self._used_at > _USE_EVERY_S:
            self._used_at = time.monotonic()
            try:
                self._cache.use()
            except CacheError as error:
                self._stop_keeping(str(error))

    def _ensure(self, chunks: Iterable[int]) -> bool:
        """Have the rows of chunks at hand; False when some have to be computed batch by batch."""
        missing = [c for c in chunks if c not in self._ready and c not in self._given_up]
        if missing:
            self._use()
            deadline = time.monotonic() + PATIENCE_S
            for chunk in missing:
                try:
                    if not self._wait_for(chunk, deadline):
                        self._given_up.add(chunk)
                except CacheError as error:
                    self._stop_keeping(str(error))
                    self._given_up.add(chunk)
        return all(chunk in self._ready for chunk in chunks)

    def _wait_for(self, chunk: int, deadline: float) -> bool:
        """Find a chunk, make it, or wait until another process has made it."""
        told, started = False, time.monotonic()
        while not self._find(chunk):
            if self._not_kept is not None:
                return False
            if self._make(chunk):
                return True
            later = range(chunk + 1, len(self._chunks))
            if any(self._make(other) for other in later if other not in self._ready):
                deadline = max(deadline, time.monotonic() + PATIENCE_S)  # that was no waiting
                continue
            waited = time.monotonic() - started
            if time.monotonic() > deadline:
                return False
            if waited > _TELL_AFTER_S and not told:
                logger.info("waiting for another process to compute the teacher's answers")
                told = True
            time.sleep(self._cache.poll_s)
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
        if self._cache.has(piece) or self._find(chunk):
            return False
        with self._cache.lease(piece) as mine:
            if not mine or self._cache.has(piece):
                return False
            rows = self._compute(chunk)
            try:
                kept = self._cache.keep(piece, rows)
                if not kept:
                    self._stop_keeping(NO_ROOM)
                # Rows that lie in a file take no memory of this process's own.
                self._add(piece, (self._cache.open(piece) if kept else None) or rows)
            except CacheError as error:
                self._stop_keeping(str(error))
                self._add(piece, rows)
            self._ready.add(chunk)
        return True

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
            logits.append(self._rounded(answers.logits))
            features.append(self._rounded(answers.features))
        rows = Rows(torch.cat(positions), torch.cat(logits).cpu(), torch.cat(features).cpu())
        self._num_computed += len(rows.positions)
        if self._dtype == torch.float16:
            self._tell_of_clamped(rows)
        return rows

    def _rounded(self, values: Tensor) -> Tensor:
        """In the precision that is kept; what is too large for it becomes its largest number."""
        limit = torch.finfo(self._dtype).max
        return values.clamp(-limit, limit).to(self._dtype)

    def _tell_of_clamped(self, rows: Rows) -> None:
        limit = torch.finfo(self._dtype).max
        if any((part.abs() == limit).any() for part in rows[1:]):
            self._warn(
                "some of the teacher's features or logits are too large for fp16 and were cut to "
                "65504: teacher_cache.dtype bf16 can hold them"
            )

    def _batches(self, chunk: int) -> list[Tensor]:
        """Positions of each batch of this rank's, or of all ranks' where rows are read by all."""
        recipe, (rank, size) = self._recipe, self._part
        found: list[Tensor] = []
        for step in self._chunks[chunk].split(recipe.batch_size):
            for micro in step.split(recipe.batch_size // recipe.accumulate):
                parts = micro.split(shares(len(micro), self._ranks.size))
                found += parts if size == 1 else [parts[rank]]
        return [part for part in found if len(part)]

    def _needed(self, chunk: int) -> Tensor:
        """Positions of the rows that this rank reads; a rank may have none of the last few."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *self._batches(chunk)])

    def _piece(self, chunk: int) -> Piece:
        assert self._view is not None
        first = chunk * self._chunk_size
        return Piece(self._view, first, first + len(self._chunks[chunk]), *self._part)

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

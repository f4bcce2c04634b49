"""The teacher's answers from the cache; those that are not there are computed and left in it.

An epoch's order is cut into chunks of some thousand images. A run that needs a chunk reads it, or
makes it if nobody is making it. Where somebody is, it makes a later one meanwhile: runs that start
at the same time share the work, and none of it is done twice.
"""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from dcd_core import sample_order, shares
from orchestrator.batches import Recipe, to_device
from orchestrator.errors import UserError
from orchestrator.evaluation import Images
from orchestrator.reporter import Ranks
from orchestrator.teacher_cache.cache import Cache
from orchestrator.teacher_cache.rows import Rows
from orchestrator.teacher_cache.shelf import Piece
from orchestrator.teacher_cache.tables import Table, make_table
from orchestrator.teaching import Answers, LiveTeaching

logger = logging.getLogger(__name__)

_CHUNKS, _LEAST_ROWS, _MOST_BYTES = 32, 1024, 64 * 2**20
"""An epoch has 32 chunks, so that as many runs can share it, but a chunk has a thousand images, so
that its file's costs do not count, and 64 MiB at most."""
_PATIENCE_S = 300.0
"""How long to wait for a chunk that another process is making; one that was halted never will."""

_warned: set[tuple[str, str]] = set()
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
        dtype: of what is kept.
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
        self._row_bytes = (live.num_classes + live.feature_dim) * dtype.itemsize
        self._steps_per_chunk = _steps_per_chunk(
            len(training.labels), recipe.batch_size, row_bytes=self._row_bytes
        )
        self._view: int | None = None
        self._in_order = True
        self._chunks: list[Tensor] = []  # positions on the CPU
        self._table: Table
        self._known: Tensor  # (M,) bool
        self._opened: set[Piece] = set()
        self._ready: set[int] = set()
        self._given_up: set[int] = set()
        self._may_write = True
        self._num_answered = self._num_computed = 0

    def begin(self, epoch: int) -> None:
        """Turn to the epoch's view."""
        view = self._recipe.view(epoch)
        # Later rounds go through the same images in another order.
        self._in_order = view == epoch
        self._may_write = True
        self._given_up.clear()
        self._num_answered = self._num_computed = 0
        try:
            self._cache.use()
        except OSError as error:
            self._stop_writing(str(error))
        if view == self._view:
            return
        self._view = view
        order = sample_order(self._recipe.data_seed, view, self._training.indices).cpu()  # (M,)
        self._chunks = list(order.split(self._steps_per_chunk * self._recipe.batch_size))
        num_images = len(order)
        self._table = make_table(num_images, self._ranks.device, bytes_per_row=self._row_bytes)
        self._known = torch.zeros(num_images, dtype=torch.bool)
        self._opened.clear()
        self._ready.clear()

    def answers(self, images: Tensor, positions: Tensor, *, place: int) -> Answers:
        """Read the rows, or run the teacher where that cannot be."""
        self._num_answered += len(images)
        if self._in_order:
            chunk = place // (self._steps_per_chunk * self._recipe.batch_size)
            ready = self._ensure(chunk)
        else:
            ready = all([self._ensure(chunk) for chunk in range(len(self._chunks))])
        if ready and len(images):
            return self._table.take(positions)
        self._num_computed += len(images)
        return self._live.run(images)

    def metrics(self) -> dict[str, float]:
        """How much of the epoch this process did not compute."""
        if self._num_answered == 0:
            return {}
        saved = max(0, self._num_answered - self._num_computed)
        return {"time/teacher_cached_percent": 100 * saved / self._num_answered}

    def fill(self, epoch: int) -> bool:
        """Make or find all of an epoch's rows; whether all are kept."""
        self.begin(epoch)
        return all(self._ensure(chunk) and self._may_write for chunk in range(len(self._chunks)))

    def _ensure(self, chunk: int) -> bool:
        """Have the rows of a chunk at hand; False when they have to be computed batch by batch."""
        if chunk in self._ready:
            return True
        if chunk in self._given_up:
            return False
        deadline = time.monotonic() + _PATIENCE_S
        while not self._find(chunk):
            if self._may_write and not self._make(chunk):
                later = range(chunk + 1, len(self._chunks))
                if not any(self._make(other) for other in later if other not in self._ready):
                    time.sleep(self._cache.poll_s)
            if chunk in self._ready:
                break
            if not self._may_write or time.monotonic() > deadline:
                self._given_up.add(chunk)
                return False
        self._ready.add(chunk)
        return True

    def _find(self, chunk: int) -> bool:
        """Open what there is of a chunk; whether that is all of it."""
        assert self._view is not None
        own = self._piece(chunk)
        if self._cache.has(own):
            self._open(own)
        needed = self._needed(chunk)
        if self._known[needed].all():
            return True
        # Cut otherwise, by a run with another batch size or number of workers.
        for piece in sorted(self._cache.pieces(self._view), key=lambda piece: piece.size):
            if piece.first < own.last and own.first < piece.last and piece not in self._opened:
                self._open(piece)
                if self._known[needed].all():
                    return True
        return False

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
        if self._cache.has(piece):
            return False
        try:
            with self._cache.lease(piece) as mine:
                if not mine or self._cache.has(piece):
                    return False
                rows = self._compute(chunk)
                self._add(piece, rows)
                self._ready.add(chunk)
                if not self._cache.keep(piece, rows):
                    self._stop_writing("there is no room for more (teacher_cache.max_gib)")
        except OSError as error:
            self._stop_writing(error.strerror or str(error))
        return chunk in self._ready

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
            logits.append(answers.logits.to(self._dtype))
            features.append(answers.features.to(self._dtype))
        rows = Rows(torch.cat(positions), torch.cat(logits).cpu(), torch.cat(features).cpu())
        self._num_computed += len(rows.positions)
        if self._dtype == torch.float16 and any(part.isinf().any() for part in rows[1:]):
            raise UserError(
                "teacher_cache.dtype: the teacher's features or logits are too large for fp16: use "
                "bf16 or fp32"
            )
        return rows

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
        """Positions of the rows that this rank reads."""
        return torch.cat(self._batches(chunk) or [torch.empty(0, dtype=torch.int64)])

    def _piece(self, chunk: int) -> Piece:
        assert self._view is not None
        first = chunk * self._steps_per_chunk * self._recipe.batch_size
        return Piece(self._view, first, first + len(self._chunks[chunk]), *self._part)

    def _stop_writing(self, reason: str) -> None:
        """For this epoch."""
        self._may_write = False
        if (self._cache.location, reason) not in _warned:
            _warned.add((self._cache.location, reason))
            logger.warning(
                "the teacher's answers cannot be kept in %s: %s. The teacher is run for those that "
                "are not there",
                self._cache.location,
                reason,
            )


def _steps_per_chunk(num_images: int, batch_size: int, *, row_bytes: int) -> int:
    rows = min(max(num_images / _CHUNKS, _LEAST_ROWS), _MOST_BYTES / row_bytes)
    return max(1, round(rows / batch_size))

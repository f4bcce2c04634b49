"""Splits that are not held: where their images are, in which order an epoch takes them, who reads
which.

M: images of a split, C, H, W: channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import psutil
import torch

from dcd_core import mix, shares
from orchestrator.data.decode import Undecodable, decode_image
from orchestrator.data.raw import Integers, Pixels, RawImages, Stored
from orchestrator.data.reading import Failure
from orchestrator.data.tasks import ImageForm, Task
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

MEMORY_SHARE = 0.25
"""`data.streaming: auto` holds images that take no more than this share of the memory: for a while
there are two copies of them, and networks and everything else have to fit too."""

_IMAGES_PER_TASK = 256
_PARTS_STREAM, _SAMPLE_STREAM = 104, 105
"""Streams of the hash; those of the cuts come before."""
_SAMPLE = 4096  # images that mean and standard deviation are measured on
_SAMPLE_PER_PART = 64  # taken from many parts, since neighbours may be alike, but not from all


class Hash(Protocol):
    """Of `hashlib`."""

    def update(self, data: Any, /) -> None:
        """Go on with these bytes."""
        ...


@dataclass(frozen=True, eq=False)
class StreamedSet:
    """One split whose images are read and decoded each time they are needed."""

    stored: Stored
    stored_digest: str
    form: ImageForm
    labels: Integers
    """(M,) classes, 0..K-1."""
    indices: Integers
    """(M,) ascending index of each image in its source, before any cut."""
    examples: Pixels
    """(2, C, H, W) from the training split."""
    on_error: Literal["fail", "skip"]
    memory: int
    """Bytes that images may take in each process that reads them."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.form.shape

    @property
    def window(self) -> int:
        """How many images are in memory to be drawn from at random."""
        return self.memory // 2 // self.form.num_bytes

    def tasks(
        self, *, rank: int = 0, num_ranks: int = 1, order: tuple[int, int] | None = None
    ) -> list[Task]:
        """What one of the processes that share the split reads; they differ by one image at most.

        Args:
            rank: the process.
            num_ranks: how many there are.
            order: seed and epoch that decide in which order the source's parts are read; None for
                their own order.
        """
        chosen = np.arange(len(self), dtype=np.int64)
        if order is not None:
            chosen = self._by_part(*order, stream=_PARTS_STREAM)
        counts = shares(len(self), num_ranks)
        first = sum(counts[:rank])
        return self._tasks(chosen[first : first + counts[rank]])

    def sample(self, seed: int) -> list[Task]:
        """A few thousand images from many parts of the source, or all where there are no more."""
        chosen = self._by_part(seed, 0, stream=_SAMPLE_STREAM)  # (M,)
        parts = self._parts(chosen)  # (M,)
        first_of_part = np.flatnonzero(np.diff(parts, prepend=-1))
        sizes = np.diff(first_of_part, append=len(parts))
        in_part = np.arange(len(parts)) - np.repeat(first_of_part, sizes)  # (M,)
        quota = max(_SAMPLE_PER_PART, -(-_SAMPLE // len(sizes)))
        if len(self) <= _SAMPLE:
            quota = len(self)
        return self._tasks(chosen[in_part < quota][:_SAMPLE])

    def add_to(self, digest: Hash) -> None:
        """Count all into a fingerprint that decides what is read, short of what is in the files."""
        what = f"{self.stored_digest} {self.form} {self.on_error} {self.memory}"
        digest.update(f"streamed {what}".encode())
        for array in (self.labels, self.indices):
            digest.update(array.data)

    def _by_part(self, seed: int, epoch: int, *, stream: int) -> Integers:
        """(M,) positions in the split, the parts of the source in random order."""
        parts = self._parts(np.arange(len(self), dtype=np.int64))
        keys = mix(seed, epoch, torch.from_numpy(parts), stream).numpy()
        return np.lexsort((self.indices, parts, keys)).astype(np.int64)

    def _parts(self, chosen: Integers) -> Integers:
        """(n,) the part of the source that each image is in."""
        return np.searchsorted(self.stored.starts, self.indices[chosen], side="right") - 1

    def _tasks(self, chosen: Integers) -> list[Task]:
        first_of_part = np.flatnonzero(np.diff(self._parts(chosen), prepend=-1))
        # Small parts go together. None is divided: what comes before would be read for nothing.
        slots = first_of_part // _IMAGES_PER_TASK
        firsts = first_of_part[np.flatnonzero(np.diff(slots, prepend=-1))]
        return [
            Task(self.stored.reader(self.indices[own]), self.indices[own], self.labels[own])
            for own in np.split(chosen, firsts[1:])
        ]


def describe_failure(failure: Failure, split: StreamedSet) -> str:
    """With the image's name."""
    if failure.position is None:
        return failure.reason
    return f"{split.stored.name(failure.position)}: {failure.reason}"


def check_failures(failures: Sequence[Failure], split: StreamedSet) -> None:
    """Refuse what `data.on_error` does not let be skipped.

    Raises:
        UserError: names the first of them.
    """
    for failure in failures:
        text = describe_failure(failure, split)
        if not failure.skippable:
            raise UserError(text)
        if split.on_error == "fail":
            raise UserError(f"{text}; repair or remove it, or set data.on_error to 'skip'")


class Wanted(NamedTuple):
    """Images of a source, and those of them that are wanted."""

    images: RawImages
    labels: Integers  # of all of them
    cuts: Mapping[str, Integers]
    """Ascending positions by the name of the split."""


def streamed_form(wanted: Sequence[Wanted], spec: DataSpec) -> ImageForm | None:
    """The form of images that are to be streamed; None for those that are to be held.

    Raises:
        UserError: they are to be streamed, and none can be decoded.
    """
    train, *_ = wanted
    if train.images.stored is None or spec.streaming is False:
        return None
    form = _find_form(train.images, train.cuts["training"], spec)
    if form is None:
        if spec.streaming is True:
            raise UserError(f"none of the images of {spec.path} could be decoded")
        return None
    num_images = sum(len(cut) for one in wanted for cut in one.cuts.values())
    fits = num_images * form.num_bytes <= MEMORY_SHARE * node_memory()
    return None if spec.streaming == "auto" and fits else form


def streamed_sets(
    wanted: Sequence[Wanted], form: ImageForm, spec: DataSpec
) -> dict[str, StreamedSet]:
    """All splits, without examples.

    Raises:
        UserError: the test images are of another shape.
    """
    sets: dict[str, StreamedSet] = {}
    for images, labels, cuts in wanted:
        assert images.stored is not None
        digest = images.stored.digest()
        for name, cut in cuts.items():
            sets[name] = StreamedSet(
                stored=images.stored,
                stored_digest=digest,
                form=form,
                labels=labels[cut],
                indices=cut,
                examples=np.empty((0, *form.shape), dtype=np.uint8),
                on_error=spec.on_error,
                memory=int(spec.memory_gib * 2**30),
            )
    for images, _, cuts in wanted[1:]:
        own = _find_form(images, cuts["test"], spec)
        if own is not None:
            check_same_shape(form.shape, own.shape)
    return sets


def check_same_shape(train_shape: tuple[int, ...], test_shape: tuple[int, ...]) -> None:
    if train_shape != test_shape:
        remedy = "data.grey_to_rgb" if train_shape[1:] == test_shape[1:] else "data.resize"
        raise UserError(
            f"training images are {'x'.join(map(str, train_shape))} and test images "
            f"{'x'.join(map(str, test_shape))} (channels x height x width): set {remedy}"
        )


def _find_form(images: RawImages, positions: Integers, spec: DataSpec) -> ImageForm | None:
    """What the first image that can be decoded is made into; None where none can be."""
    size = (spec.resize, spec.resize) if isinstance(spec.resize, int) else spec.resize
    crop = spec.resize_by == "center_crop"
    for image in images.read(positions):
        try:
            pixels = decode_image(image, size=size, crop=crop, grey_to_rgb=spec.grey_to_rgb)
        except Undecodable:
            continue
        height, width, channels = pixels.shape
        return ImageForm((channels, height, width), size, spec.grey_to_rgb, crop)
    return None


def node_memory() -> int:
    """Bytes of memory that this machine has, or the container that this process is in."""
    limits: list[int] = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # another system, or no limit
            continue
    return min(limits)

"""Order and augmentation as pure functions of (seed, epoch, image), equal on every device.

The draw for an image does not depend on the batch, the worker or the restart that it is made in.

Shape letters: B images, C channels, H x W pixels, M images in all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dcd_core.counter_hash import mix
from dcd_core.resample import line_filter, resample

_ORDER, _TOP, _LEFT, _FLIP, _AREA, _ASPECT = range(6)
"""Streams of ``mix`` used here."""

_ATTEMPTS = 10
"""To find a random part of an image that lies inside it, as in torchvision."""


def sample_order(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """A random order of images that depends on (seed, epoch, index) only.

    Args:
        indices: each image's index in its source, (M,) int64.

    Returns:
        Positions in ``indices``, (M,) int64; ``indices[positions]`` is the same whatever order
        ``indices`` is in.
    """
    by_index = indices.argsort(stable=True)  # breaks ties between equal hashes
    return by_index[mix(seed, epoch, indices[by_index], _ORDER).argsort(stable=True)]


def crop_flip(
    images: Tensor, *, seed: int, epoch: int, indices: Tensor, padding: int = 4, flip: bool = True
) -> Tensor:
    """Pad with zeros, crop to the old size at random, and mirror half of the images.

    Args:
        images: (B, C, H, W) uint8.
        seed: decides, with ``epoch`` and the index, what happens to an image.
        epoch: number of the epoch.
        indices: each image's index in its source, (B,) int64.
        padding: pixels on each side.
        flip: whether to mirror at all.

    Returns:
        (B, C, H, W) uint8.
    """
    height, width = images.shape[2:]
    top = mix(seed, epoch, indices, _TOP) % (2 * padding + 1)  # (B,)
    left = mix(seed, epoch, indices, _LEFT) % (2 * padding + 1)  # (B,)
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device).expand(len(indices), -1)  # (B, W)
    if flip:
        mirrored = _mirrored(seed, epoch, indices)  # (B,)
        x = torch.where(mirrored[:, None], width - 1 - x, x)
    rows = (top[:, None] + y)[:, :, None]  # (B, H, 1)
    columns = (left[:, None] + x)[:, None, :]  # (B, 1, W)
    pixels = (rows * (width + 2 * padding) + columns).flatten(1)  # (B, H * W)
    padded = F.pad(images, (padding,) * 4).flatten(2)  # (B, C, pixels)
    return padded.gather(2, pixels[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


def random_resized_crop(
    images: Tensor,
    *,
    seed: int,
    epoch: int,
    indices: Tensor,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> Tensor:
    """Cut out a random part of each image, resize it to a square, and mirror half of the images.

    The ImageNet augmentation: what torchvision's RandomResizedCrop and RandomHorizontalFlip do.

    Args:
        images: (B, C, H, W) uint8.
        seed: decides, with ``epoch`` and the index, what happens to an image.
        epoch: number of the epoch.
        indices: each image's index in its source, (B,) int64.
        size: side of the result in pixels, S.
        area: least and largest share of the image's area, drawn uniformly.
        aspect: least and largest width / height, drawn log-uniformly.
        flip: whether to mirror at all.

    Returns:
        (B, C, S, S) uint8.
    """
    height, width = images.shape[2:]
    box = random_boxes(
        height, width, seed=seed, epoch=epoch, indices=indices, area=area, aspect=aspect
    )
    rows = line_filter(box.top, box.height, size=size, longest=height)
    columns = line_filter(box.left, box.width, size=size, longest=width)
    if flip:
        columns = columns.mirrored(_mirrored(seed, epoch, indices))
    return resample(images, rows=rows, columns=columns)


class Boxes(NamedTuple):
    """Parts of images, in pixels; (B,) int64 each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def random_boxes(
    height: int,
    width: int,
    *,
    seed: int,
    epoch: int,
    indices: Tensor,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Boxes:
    """The parts that `random_resized_crop` cuts out of images H x W; arguments as there.

    The first of ten drawn sizes that fits into the image is taken. Where none does, it is the
    largest part of an allowed aspect, from the centre.
    """
    counters = indices[:, None] * _ATTEMPTS + torch.arange(_ATTEMPTS, device=indices.device)
    share = _uniform(seed, epoch, counters, _AREA, *area)  # (B, attempts)
    # The last bit of exp may differ between devices; a rounded side hardly ever sees it.
    ratio = _uniform(seed, epoch, counters, _ASPECT, *map(math.log, aspect)).exp()
    widths = (height * width * share * ratio).sqrt().round().long()  # (B, attempts)
    heights = (height * width * share / ratio).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)  # (B, 1)
    found = fits.any(1)  # (B,)

    fallback_width = min(width, round(height * aspect[1]))
    fallback_height = min(height, round(width / aspect[0]))
    box_width = torch.where(found, widths.gather(1, first)[:, 0], fallback_width)
    box_height = torch.where(found, heights.gather(1, first)[:, 0], fallback_height)
    top = mix(seed, epoch, indices, _TOP) % (height - box_height + 1)
    left = mix(seed, epoch, indices, _LEFT) % (width - box_width + 1)
    return Boxes(
        torch.where(found, top, (height - fallback_height) // 2),
        torch.where(found, left, (width - fallback_width) // 2),
        box_height,
        box_width,
    )


def center_crop(images: Tensor, *, size: int) -> Tensor:
    """Resize to a shorter side of 8/7 of ``size`` and cut a square of ``size`` from the centre.

    How networks trained with `random_resized_crop` are evaluated: 256 and 224 on ImageNet.

    Args:
        images: (B, C, H, W) uint8.
        size: side of the result in pixels, S.

    Returns:
        (B, C, S, S) uint8.
    """
    height, width = images.shape[2:]
    shorter = round(size * 256 / 224)
    # The longer side as torchvision's Resize has it.
    new_height = shorter if height <= width else int(shorter * height / width)
    new_width = shorter if width <= height else int(shorter * width / height)
    if (new_height, new_width) != (height, width):
        start = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        images = resample(
            images,
            rows=line_filter(start, start + height, size=new_height, longest=height),
            columns=line_filter(start, start + width, size=new_width, longest=width),
        )
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return images[:, :, top : top + size, left : left + size]


def normalize(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale bytes to [0, 1] and standardise each channel: (x / 255 - mean) / std.

    Args:
        images: (B, C, H, W) uint8.
        mean: one value per channel.
        std: one value per channel.

    Returns:
        (B, C, H, W) float32.

    Raises:
        ValueError: the number of values is not the number of channels.
    """
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean has {len(mean)} values and std {len(std)}, but the images have {channels} "
            "channels: give one value per channel"
        )
    center = _per_channel(tuple(mean), images.device)
    scale = _per_channel(tuple(std), images.device)
    return (images.float() / 255 - center) / scale


@functools.lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Kept, because a copy to a GPU waits for it.
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)  # (C, 1, 1)


def _mirrored(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """(B,) whether each image is mirrored, by the highest bit, as good as any."""
    return mix(seed, epoch, indices, _FLIP) >> 62 == 1


def _uniform(
    seed: int, epoch: int, counters: Tensor, stream: int, low: float, high: float
) -> Tensor:
    """Uniform float64 in [low, high), one for each counter, from the 53 highest bits of a hash."""
    return low + (high - low) * ((mix(seed, epoch, counters, stream) >> 10).double() * 2.0**-53)

"""Order and augmentation as pure functions of (seed, epoch, image), equal on every device.

Random numbers come from a hash of a counter, not from a generator with a state: the draw for an
image does not depend on the batch, the worker or the restart that it is made in.

Shape letters: B images, C channels, H x W pixels, M images in all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_ORDER, _TOP, _LEFT, _FLIP = range(4)
"""Streams of ``mix`` used here."""

_MASK = (1 << 64) - 1
# SplitMix64: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def mix(seed: int, epoch: int, indices: Tensor, stream: int) -> Tensor:
    """Hash (seed, epoch, index, stream) to uniform integers, with SplitMix64.

    Args:
        seed: any integer of 64 bits.
        epoch: any integer of 64 bits.
        indices: (B,) int64.
        stream: tells independent uses apart.

    Returns:
        (B,) int64 in [0, 2^63).
    """
    key = 0
    for part in (seed, epoch, stream):
        key = _finalise_int((key + part + 1) * _GOLDEN & _MASK)
    hashed = _finalise(indices.to(torch.int64) * _signed(_GOLDEN) + _signed(key))
    return hashed & ((1 << 63) - 1)


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
        # The highest bit, as good as any.
        mirrored = mix(seed, epoch, indices, _FLIP) >> 62 == 1  # (B,)
        x = torch.where(mirrored[:, None], width - 1 - x, x)
    rows = (top[:, None] + y)[:, :, None]  # (B, H, 1)
    columns = (left[:, None] + x)[:, None, :]  # (B, 1, W)
    pixels = (rows * (width + 2 * padding) + columns).flatten(1)  # (B, H * W)
    padded = F.pad(images, (padding,) * 4).flatten(2)  # (B, C, pixels)
    return padded.gather(2, pixels[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


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


def _finalise(x: Tensor) -> Tensor:
    """SplitMix64's output function on int64, whose products wrap like those of uint64."""
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _finalise_int(x: int) -> int:
    x = (x ^ x >> 30) * _FIRST & _MASK
    x = (x ^ x >> 27) * _SECOND & _MASK
    return x ^ x >> 31


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; that of int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 with the same bits as an unsigned integer."""
    return x - (1 << 64) if x >> 63 else x

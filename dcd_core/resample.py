"""Bilinear resizing of parts of images, each image its own part, in integer arithmetic.

The filter is Pillow's, which torchvision's transforms of PIL images use too: a triangle that widens
where the image shrinks, so that no pixel is passed over (antialiasing). Columns come first, then
rows, rounded to bytes after each; Pillow 13 takes the order that costs less, and may be one level
off. Sums of integers do not depend on their order, so the result does not
depend on the batch, the device or the number of threads.

Shape letters: B images, C channels, H x W pixels, S pixels of a side, T taps of the filter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_BITS = 22
"""Of a weight's fraction; 8 bits of a pixel and the sign make 31, as in Pillow."""


_AT_ONCE = 16
"""Images on a CPU: the sums of more leave its caches, which halves the speed at 224 pixels."""


class Filter(NamedTuple):
    """What each pixel of a resized line is made of."""

    positions: Tensor  # (B, S, T) int64, of pixels in the line that is resized
    weights: Tensor  # (B, S, T) int32, of sum 2^22

    def mirrored(self, where: Tensor) -> Filter:
        """The filter with the result's order turned round, where (B,) says so."""
        return Filter(*(torch.where(where[:, None, None], part.flip(1), part) for part in self))

    def split(self, size: int) -> list[Filter]:
        """Filters of so many images each."""
        parts = zip(self.positions.split(size), self.weights.split(size), strict=True)
        return [Filter(*part) for part in parts]


def line_filter(start: Tensor, length: Tensor, *, size: int, longest: int) -> Filter:
    """The filter that turns a part of each line into a line of another size.

    Args:
        start: first pixel of the part, (B,) int64.
        length: its number of pixels, (B,) int64.
        size: S.
        longest: the largest length there may be, which decides T without a look at the device.
    """
    scale = length.double() / size  # (B,)
    radius = scale.clamp(min=1.0)[:, None]  # (B, 1)
    center = (torch.arange(size, device=start.device) + 0.5) * scale[:, None]  # (B, S)
    first = (center - radius + 0.5).long().clamp(min=0)  # (B, S)
    last = (center + radius + 0.5).long().minimum(length[:, None])  # (B, S)
    num_taps = 2 * math.ceil(max(longest / size, 1.0)) + 1
    taps = first[..., None] + torch.arange(num_taps, device=start.device)  # (B, S, T)
    distance = (taps - center[..., None] + 0.5) * (1.0 / radius)[..., None]  # (B, S, T)
    weights = (1.0 - distance.abs()).clamp(min=0.0)
    weights = torch.where(taps < last[..., None], weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    within = taps.minimum(length[:, None, None] - 1)  # taps beyond the part weigh nothing
    return Filter(start[:, None, None] + within, (weights * 2**_BITS + 0.5).int())


def resample(images: Tensor, *, rows: Filter, columns: Filter) -> Tensor:
    """Apply a filter to the columns and one to the rows.

    Args:
        images: (B, C, H, W) uint8.
        rows: makes S rows.
        columns: makes S' columns.

    Returns:
        (B, C, S, S') uint8.
    """
    at_once = len(images) if images.is_cuda else _AT_ONCE
    parts = zip(images.split(at_once), rows.split(at_once), columns.split(at_once), strict=True)
    return torch.cat([_resampled(*part) for part in parts])


def _resampled(images: Tensor, rows: Filter, columns: Filter) -> Tensor:
    narrowed = _filtered(images, columns)  # (B, C, H, S')
    return _filtered(narrowed.transpose(2, 3), rows).transpose(2, 3)


def _filtered(images: Tensor, taken: Filter) -> Tensor:
    """(B, C, H, W) -> (B, C, H, S), of the last axis."""
    lines = (*images.shape[:3], taken.positions.shape[1])
    half = 1 << (_BITS - 1)  # rounds to the nearest
    total = torch.full(lines, half, dtype=torch.int32, device=images.device)
    for positions, weights in zip(taken.positions.unbind(2), taken.weights.unbind(2), strict=True):
        pixels = images.gather(3, positions[:, None, None].expand(lines))  # (B, C, H, S)
        total += pixels * weights[:, None, None]
    return (total >> _BITS).clamp(0, 255).to(torch.uint8)

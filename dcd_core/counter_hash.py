"""Random numbers from a hash of a counter, instead of a generator with a state."""

from __future__ import annotations

import torch
from torch import Tensor

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
        indices: int64, of any shape.
        stream: tells independent uses apart.

    Returns:
        int64 of the same shape, in [0, 2^63).
    """
    key = 0
    for part in (seed, epoch, stream):
        key = _finalise_int((key + part + 1) * _GOLDEN & _MASK)
    hashed = _finalise(indices.to(torch.int64) * _signed(_GOLDEN) + _signed(key))
    return hashed & ((1 << 63) - 1)


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

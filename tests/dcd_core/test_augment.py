from __future__ import annotations

import pytest
import torch
from tiny import random_images
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dcd_core import crop_flip, mix, normalize, sample_order

INDICES = torch.arange(5000)


def _splitmix64(state: int) -> int:
    """The published generator (Steele, Lea & Flood 2014), in unbounded integers."""
    mask = 2**64 - 1
    z = state % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64_of_a_key_and_a_counter() -> None:
    golden = 0x9E3779B97F4A7C15
    indices = [0, 1, 2, 49_999, 2**40, 2**63 - 1]
    for seed, epoch, stream in [(0, 0, 0), (1, 2, 3), (2**31 - 1, 239, 11)]:
        key = 0
        for part in (seed, epoch, stream):
            key = _splitmix64((key + part + 1) * golden)
        expected = [_splitmix64(i * golden + key) % 2**63 for i in indices]
        assert mix(seed, epoch, torch.tensor(indices), stream).tolist() == expected


def test_every_bit_of_the_hash_is_fair_and_flips_with_every_input() -> None:
    base = mix(0, 0, INDICES, 0)
    bits = torch.arange(63)
    for other in (
        mix(1, 0, INDICES, 0),
        mix(0, 1, INDICES, 0),
        mix(0, 0, INDICES, 1),
        mix(0, 0, INDICES + 1, 0),
    ):
        flipped = ((base ^ other)[:, None] >> bits & 1).double().mean(0)
        # Five standard errors of a fair coin thrown 5,000 times.
        assert (flipped - 0.5).abs().max() < 5 * 0.5 / 5000**0.5
    ones = (base[:, None] >> bits & 1).double().mean(0)
    assert (ones - 0.5).abs().max() < 5 * 0.5 / 5000**0.5
    assert base.min() >= 0
    assert len(base.unique()) == len(base)


def test_seed_epoch_and_stream_are_not_interchangeable() -> None:
    hashes = [
        mix(seed, epoch, INDICES[:4], stream).tolist()
        for seed, epoch, stream in [(1, 2, 3), (2, 1, 3), (3, 2, 1)]
    ]
    assert hashes[0] != hashes[1]
    assert hashes[0] != hashes[2]


def test_the_order_is_a_permutation_that_seed_and_epoch_change() -> None:
    order = sample_order(0, 1, INDICES)
    assert order.sort().values.tolist() == INDICES.tolist()
    for other in (sample_order(0, 2, INDICES), sample_order(1, 1, INDICES), INDICES):
        assert (order == other).double().mean() < 0.01


def test_the_order_of_images_does_not_depend_on_where_they_are_stored() -> None:
    indices = 3 * INDICES + 7
    shuffled = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))]
    expected = indices[sample_order(5, 2, indices)]
    assert shuffled[sample_order(5, 2, shuffled)].tolist() == expected.tolist()


def test_images_of_a_subset_keep_their_relative_order() -> None:
    whole = sample_order(5, 2, INDICES).tolist()
    subset = INDICES[::3]
    kept = set(subset.tolist())
    order = subset[sample_order(5, 2, subset)].tolist()
    assert order == [index for index in whole if index in kept]


def _augmented(images: Tensor, indices: Tensor, *, epoch: int = 3) -> Tensor:
    return crop_flip(images, seed=1, epoch=epoch, indices=indices)


def test_augmentation_does_not_depend_on_batch_split_or_order() -> None:
    images, indices = random_images(40), 100 + torch.arange(40)
    whole = _augmented(images, indices)
    parts = zip(images.split(7), indices.split(7), strict=True)
    assert torch.equal(torch.cat([_augmented(*part) for part in parts]), whole)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_augmented(images[order], indices[order]), whole[order])


def test_augmentation_changes_with_epoch_and_index() -> None:
    images = random_images(1).expand(64, -1, -1, -1)
    base = _augmented(images, torch.arange(64))
    other_epoch = _augmented(images, torch.arange(64), epoch=4)
    other_index = _augmented(images, 64 + torch.arange(64))
    other_seed = crop_flip(images, seed=2, epoch=3, indices=torch.arange(64))
    for other in (other_epoch, other_index, other_seed):
        differs = (base != other).flatten(1).any(1)
        assert differs.double().mean() > 0.9


def test_each_result_is_a_crop_of_the_padded_image_perhaps_mirrored() -> None:
    images = random_images(50)
    results = _augmented(images, torch.arange(50))
    found = []
    for image, result in zip(images, results, strict=True):
        padded = torch.zeros(3, 16, 16, dtype=torch.uint8)
        padded[:, 4:12, 4:12] = image
        found.append(
            [
                (top, left, mirrored)
                for top in range(9)
                for left in range(9)
                for mirrored in (False, True)
                if torch.equal(
                    padded[:, top : top + 8, left : left + 8].flip(2 if mirrored else ()), result
                )
            ]
        )
    assert all(len(places) == 1 for places in found)
    assert len({places[0] for places in found}) > 35


def test_offsets_are_uniform_and_half_the_images_are_mirrored() -> None:
    # An image whose pixels are their own coordinates, + 1 to tell them from padding.
    ramp = torch.arange(1, 82, dtype=torch.uint8).view(1, 1, 9, 9).expand(5000, -1, -1, -1)
    results = crop_flip(ramp, seed=0, epoch=0, indices=INDICES, padding=4)
    center = results[:, 0, 4, 4].long() - 1  # always inside the image
    top, left = center // 9, center % 9
    # chi-squared with 8 degrees of freedom exceeds 26.1 once in a thousand.
    expected = 5000 / 9
    for offsets in (top, left):
        assert ((offsets.bincount(minlength=9) - expected) ** 2 / expected).sum() < 26.1
    flipped = crop_flip(ramp, seed=0, epoch=0, indices=INDICES, padding=0)[:, 0, 0, 0] == 9
    share = flipped.double().mean()
    assert abs(share - 0.5) < 5 * 0.5 / 5000**0.5
    # Offsets and mirroring are drawn independently.
    table = torch.stack([top.double(), left.double(), flipped.double()]).corrcoef()
    assert (table - torch.eye(3)).abs().max() < 0.08


def test_flipping_and_cropping_can_be_turned_off() -> None:
    images, indices = random_images(20), torch.arange(20)
    unchanged = crop_flip(images, seed=0, epoch=0, indices=indices, padding=0, flip=False)
    assert torch.equal(unchanged, images)
    mirrored = crop_flip(images, seed=0, epoch=0, indices=indices, padding=0)
    same = (mirrored == images).flatten(1).all(1)
    reverse = (mirrored == images.flip(3)).flatten(1).all(1)
    assert (same ^ reverse).all()
    assert same.any()
    assert reverse.any()


def test_no_images_stay_no_images() -> None:
    none = crop_flip(random_images(0), seed=0, epoch=0, indices=torch.arange(0))
    assert none.shape == (0, 3, 8, 8)
    assert normalize(none, mean=(0.5,) * 3, std=(1.0,) * 3).shape == (0, 3, 8, 8)


def test_images_that_are_not_square_keep_their_shape() -> None:
    images = random_images(6)[:, :, :5]
    assert _augmented(images, torch.arange(6)).shape == (6, 3, 5, 8)


def test_normalisation_gives_hand_numbers() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalize(images, mean=(0.5, 0.2, 0.0), std=(0.25, 0.5, 2.0))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor([-2.0, 0.0, 0.5]))


def test_normalisation_needs_one_value_per_channel() -> None:
    with pytest.raises(ValueError, match="mean has 1 values and std 3, but the images have 3"):
        normalize(random_images(1), mean=(0.5,), std=(1.0,) * 3)


def test_the_draws_use_integers_only() -> None:
    """Floating point would round differently on another device."""
    dtypes: set[torch.dtype] = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                dtypes.add(result.dtype)
            return result

    with Recorder():
        _augmented(random_images(4), torch.arange(4))
        sample_order(0, 0, torch.arange(4))
    assert dtypes == {torch.uint8, torch.int64, torch.bool}

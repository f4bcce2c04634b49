from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from orchestrator.data.reading import Rows
from orchestrator.streaming.window import ShuffleWindow


def rows(sizes: Sequence[int], *, read: list[int] | None = None) -> Iterator[Rows]:
    """Rows of so many images each; image i is full of i, has label i % 7 and index 10 i."""
    start = 0
    for size in sizes:
        numbers = np.arange(start, start + size)
        images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (size, 1, 2, 2))
        start += size
        if read is not None:
            read.append(start)
        yield Rows(images.copy(), numbers % 7, 10 * numbers, ())


def drain(window: ShuffleWindow, source: Iterator[Rows], num_images: int) -> list[Rows]:
    """Draw until nothing is left."""
    drawn = []
    window.fill(source)
    while len(window):
        drawn.append(window.draw(min(num_images, len(window))))
        window.fill(source)
    return drawn


def order(capacity: int, *, seed: int, sizes: Sequence[int] = (40, 1, 59)) -> list[int]:
    window = ShuffleWindow(capacity, shape=(1, 2, 2), seed=seed)
    parts = drain(window, rows(sizes), 4)
    return np.concatenate([part.indices for part in parts]).tolist()


@pytest.mark.parametrize("sizes", [(100,), (1,) * 30, (3, 50, 0, 1, 7), (9, 9, 9)])
@pytest.mark.parametrize("capacity", [8, 9, 64])
@pytest.mark.parametrize("num_images", [1, 5, 8])
def test_each_image_comes_out_once_with_its_own_label(
    sizes: tuple[int, ...], capacity: int, num_images: int
) -> None:
    window = ShuffleWindow(capacity, shape=(1, 2, 2), seed=3)
    drawn = drain(window, rows(sizes), num_images)
    numbers = np.concatenate([part.indices for part in drawn]) // 10
    assert sorted(numbers.tolist()) == list(range(sum(sizes)))
    labels = np.concatenate([part.labels for part in drawn])
    assert labels.tolist() == (numbers % 7).tolist()
    images = np.concatenate([part.images for part in drawn])
    assert (images == numbers[:, None, None, None]).all()


def test_no_more_is_read_than_fits() -> None:
    read: list[int] = []
    source = rows((6, 6, 6, 6), read=read)
    window = ShuffleWindow(10, shape=(1, 2, 2), seed=0)
    window.fill(source)
    assert len(window) == 10
    assert read == [6, 12]
    window.draw(2)
    window.fill(source)  # the two that had not fitted
    assert len(window) == 10
    assert read == [6, 12]


def test_the_seed_decides_the_order() -> None:
    assert order(20, seed=1) == order(20, seed=1)
    assert order(20, seed=1) != order(20, seed=2)


def test_how_images_were_read_does_not_matter() -> None:
    assert order(20, seed=1) == order(20, seed=1, sizes=(7,) * 14 + (2,))


def test_a_window_as_large_as_the_set_puts_each_image_anywhere() -> None:
    # Mean place of image 0 over seeds: 49.5 with a standard deviation of 28.9 / sqrt(200) = 2.
    places = [order(100, seed=seed).index(0) for seed in range(200)]
    assert 41 < np.mean(places) < 58


def test_an_image_stays_in_the_window_for_a_while_that_has_no_bound() -> None:
    # In a window of 20 of which 4 are drawn at a time, an image stays with probability 0.8.
    stayed = [order(20, seed=seed).index(0) >= 4 for seed in range(500)]
    assert np.mean(stayed) == pytest.approx(0.8, abs=0.06)


def test_a_window_of_one_keeps_the_order() -> None:
    window = ShuffleWindow(1, shape=(1, 2, 2), seed=0)
    drawn = drain(window, rows((5, 5)), 1)
    assert [int(part.indices[0]) for part in drawn] == list(range(0, 100, 10))

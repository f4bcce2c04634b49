"""Real handwritten digits as a folder of pictures, one folder per class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def save_digits(folder: Path, *, classes: Iterable[int], per_class: int = 60) -> Path:
    """Write the first pictures of some digits, 8x8 and grey, under their English names."""
    images, labels = load_digits(return_X_y=True)
    for digit in classes:
        own = folder / NAMES[digit]
        own.mkdir(parents=True)
        for number, image in enumerate(images[labels == digit][:per_class]):
            pixels = np.rint(image.reshape(8, 8) * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(own / f"{number:03d}.png")
    return folder

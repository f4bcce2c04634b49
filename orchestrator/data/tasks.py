"""What a process needs to read and decode some images.

Processes that only decode import this and no PyTorch, which would take longer to load than a
thousand images and more memory than all that they hold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from orchestrator.data.decode import Size
from orchestrator.data.raw import Integers, Reader


class Task(NamedTuple):
    """Some images that are read and decoded together."""

    reader: Reader
    indices: Integers  # (n,) in the source, in reading order
    labels: Integers  # (n,)


class ImageForm(NamedTuple):
    """What the images of a set are made into."""

    shape: tuple[int, int, int]
    """(C, H, W)."""
    size: Size | None
    """That they are resized to; None where they have it already."""
    grey_to_rgb: bool
    crop: bool = False
    """Whether they keep their aspect and lose what lies outside the centre."""

    @property
    def num_bytes(self) -> int:
        """Of one image."""
        return int(np.prod(self.shape))

"""Tiny networks and batches for the tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcd_core import Distiller, FeatureModel, build_model, normalize

NUM_CLASSES = 5
TEACHER_DIM = 7


class TinyNet(nn.Module):
    """A convolution and a classifier, without BatchNorm; features have 6 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(images).tanh().mean((2, 3)))
        return logits


class Batch(NamedTuple):
    """Rows of images and what a teacher says of them."""

    images: Tensor  # (B, 3, 8, 8)
    labels: Tensor  # (B,)
    teacher_logits: Tensor  # (B, NUM_CLASSES)
    teacher_features: Tensor  # (B, TEACHER_DIM)

    def rows(self, rows: slice) -> Batch:
        """Some of the rows."""
        return Batch(*(part[rows] for part in self))


def random_batch(num_rows: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Noise, with labels of few classes, so that some agree."""
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randn(num_rows, 3, 8, 8, generator=draw, dtype=dtype),
        labels=torch.randint(0, 3, (num_rows,), generator=draw),
        teacher_logits=3 * torch.randn(num_rows, NUM_CLASSES, generator=draw, dtype=dtype),
        teacher_features=torch.randn(num_rows, TEACHER_DIM, generator=draw, dtype=dtype),
    )


def tiny_distiller(
    *,
    name: str | None = None,
    learn_bias: bool = False,
    dtype: torch.dtype = torch.float64,
    **options: float,
) -> Distiller:
    """A seeded distiller around TinyNet, or around a built-in model."""
    torch.manual_seed(1)
    network = TinyNet() if name is None else build_model(name, num_classes=NUM_CLASSES)
    student = FeatureModel(network, images_example=torch.zeros(2, 3, 8, 8))
    distiller = Distiller(
        student, teacher_dim=TEACHER_DIM, projection_dim=4, learn_bias=learn_bias, **options
    )
    return distiller.to(dtype)


def random_images(num_images: int, *, size: int = 8) -> Tensor:
    """Bytes, (B, 3, size, size)."""
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (num_images, 3, size, size), generator=draw, dtype=torch.uint8)


def standardised(images: Tensor) -> Tensor:
    """Bytes to what networks see."""
    return normalize(images, mean=(0.5,) * 3, std=(0.25,) * 3)

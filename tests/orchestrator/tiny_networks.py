"""Classifiers that train in a fraction of a second, for experiments that name them as a source."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

on_forward: Callable[[Tiny, Tensor], Tensor] | None = None
"""What a test sets to see, change or break what a network is given."""


class Tiny(nn.Module):
    """Conv, BatchNorm, a hidden layer with dropout, a classifier."""

    def __init__(self, num_classes: int, *, channels: int, width: int, dropout: float, role: str):
        super().__init__()
        self.role = role
        self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.hidden = nn.Linear(width, 6)
        self.activation: nn.Module = nn.Tanh()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        if on_forward is not None:
            images = on_forward(self, images)
        x = torch.relu(self.norm(self.conv(images))).mean((2, 3))
        return self.classifier(self.dropout(self.activation(self.hidden(x))))


def network(
    num_classes: int,
    in_channels: int = 1,
    width: int = 4,
    dropout: float = 0.0,
    role: str = "student",
) -> nn.Module:
    """The student, and with another width or role the teacher."""
    return Tiny(num_classes, channels=in_channels, width=width, dropout=dropout, role=role)


def relu_network(
    num_classes: int, in_channels: int = 1, width: int = 5, role: str = "student"
) -> nn.Module:
    """The same weights, with another activation of the hidden layer."""
    built = Tiny(num_classes, channels=in_channels, width=width, dropout=0.0, role=role)
    built.activation = nn.ReLU()
    return built

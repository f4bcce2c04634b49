"""Residual networks for small images, as used in the CRD protocol (Tian et al., ICLR 2020).

Depth 6n + 2 with n basic blocks in each of three stages (He et al., CVPR 2016, section 4.2) and
projection shortcuts. Parameter names and shapes are those of the published checkpoints.

Shape letters: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)


class CifarResNet(nn.Module):
    """A residual network whose classifier is ``fc``.

    Args:
        depth: number of weighted layers on the main path, 6n + 2.
        widths: channels of the stem and of the three stages.
        num_classes: number of logits, K.
        in_channels: channels of the images, C.
    """

    def __init__(
        self,
        *,
        depth: int,
        widths: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6 != 0:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, such as 20, not {depth}")
        num_blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = _conv3x3(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, first, num_blocks=num_blocks, stride=1)
        self.layer2 = _stage(first, second, num_blocks=num_blocks, stride=2)
        self.layer3 = _stage(second, third, num_blocks=num_blocks, stride=2)
        self.fc = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) of any size to logits (B, K)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        features = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, width of the last stage)
        logits: Tensor = self.fc(features)  # (B, K)
        return logits


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(residual + shortcut)


def _stage(in_channels: int, out_channels: int, *, num_blocks: int, stride: int) -> nn.Sequential:
    first = _BasicBlock(in_channels, out_channels, stride=stride)
    rest = [_BasicBlock(out_channels, out_channels, stride=1) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


def _conv3x3(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


CIFAR_RESNETS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"resnet{depth}": functools.partial(CifarResNet, depth=depth, widths=_NARROW)
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{
        f"resnet{depth}x4": functools.partial(CifarResNet, depth=depth, widths=_WIDE)
        for depth in (8, 32)
    },
}

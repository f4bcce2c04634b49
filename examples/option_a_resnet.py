"""The CIFAR ResNets of arXiv 1512.03385, section 4.2, with its shortcuts without parameters.

Name one as a network of your own in an experiment, as in ``source:
examples.option_a_resnet:resnet56``; the function gets ``num_classes`` because it asks for it.

A 3x3 convolution to 16 channels, three stages of n blocks (16, 32, 64 channels; the second and
third begin by halving the resolution), global average pooling, a linear classifier: 6n + 2 layers.

Shapes: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def resnet20(num_classes: int = 10) -> nn.Module:
    """0.27 million parameters."""
    return OptionAResNet(3, num_classes=num_classes)


def resnet32(num_classes: int = 10) -> nn.Module:
    """0.46 million parameters."""
    return OptionAResNet(5, num_classes=num_classes)


def resnet44(num_classes: int = 10) -> nn.Module:
    """0.66 million parameters."""
    return OptionAResNet(7, num_classes=num_classes)


def resnet56(num_classes: int = 10) -> nn.Module:
    """0.85 million parameters."""
    return OptionAResNet(9, num_classes=num_classes)


def resnet110(num_classes: int = 10) -> nn.Module:
    """1.7 million parameters."""
    return OptionAResNet(18, num_classes=num_classes)


class OptionAResNet(nn.Module):
    """Three stages of basic blocks, then the classifier."""

    def __init__(self, blocks_per_stage: int, *, num_classes: int) -> None:
        """Args:
        blocks_per_stage: the paper's n.
        num_classes: K.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks_per_stage)
        self.layer2 = _stage(16, 32, blocks_per_stage)
        self.layer3 = _stage(32, 64, blocks_per_stage)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # arXiv 1502.01852, as the paper says

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, K)."""
        hidden = F.relu(self.bn1(self.conv1(images)))  # (B, 16, H, W)
        hidden = self.layer3(self.layer2(self.layer1(hidden)))  # (B, 64, H/4, W/4)
        features = hidden.mean(dim=(2, 3))  # (B, 64)
        logits: Tensor = self.linear(features)  # (B, K)
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `stride` 2 halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        residual = F.relu(self.bn1(self.conv1(hidden)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self._shortcut(hidden))

    def _shortcut(self, hidden: Tensor) -> Tensor:
        """Option A: every second pixel, and zeros for the channels that the input does not have.

        The zeros lie half before, half after the input's channels, which the paper leaves open.
        """
        if self.stride == 1:
            return hidden
        before = self.new_channels // 2
        subsampled = hidden[:, :, :: self.stride, :: self.stride]
        return F.pad(subsampled, (0, 0, 0, 0, before, self.new_channels - before))


def _stage(in_channels: int, out_channels: int, num_blocks: int) -> nn.Sequential:
    first_stride = 1 if in_channels == out_channels else 2
    first = BasicBlock(in_channels, out_channels, stride=first_stride)
    others = (BasicBlock(out_channels, out_channels, stride=1) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *others)

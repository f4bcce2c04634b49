"""ShuffleNet V2 for small images (Ma et al., ECCV 2018, arXiv:1807.11164), as in the CRD protocol.

The paper's network of width 1, with a 1x1 convolution that keeps the resolution in place of the
stem. Weights start as PyTorch's layers do.

Shape letters: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEM = 24


class ShuffleNetV2(nn.Module):
    """Split, transform, concatenate and shuffle; the classifier is ``linear``.

    Args:
        num_classes: number of logits, K.
        in_channels: channels of the images, C.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _conv1x1(in_channels, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 116, num_blocks=4)
        self.layer2 = _stage(116, 232, num_blocks=8)
        self.layer3 = _stage(232, 464, num_blocks=4)
        self.conv2 = _conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) of any size to logits (B, K)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        features = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, 1024)
        logits: Tensor = self.linear(features)  # (B, K)
        return logits


class _Block(nn.Module):
    """Half of the channels pass through 1x1, depthwise 3x3 and 1x1; the others stay as they are."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        half = num_channels // 2
        self.conv1, self.bn1 = _conv1x1(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _depthwise3x3(half, stride=1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _conv1x1(half, half), nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        changed = F.relu(self.bn1(self.conv1(changed)))
        changed = self.bn2(self.conv2(changed))
        changed = F.relu(self.bn3(self.conv3(changed)))
        shuffled: Tensor = self.shuffle(torch.cat([kept, changed], 1))
        return shuffled


class _DownBlock(nn.Module):
    """Both branches see all channels, halve the resolution and make half of the new channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1, self.bn1 = _depthwise3x3(in_channels, stride=2), nn.BatchNorm2d(in_channels)
        self.conv2, self.bn2 = _conv1x1(in_channels, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _conv1x1(in_channels, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = _depthwise3x3(half, stride=2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = _conv1x1(half, half), nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        shuffled: Tensor = self.shuffle(torch.cat([left, right], 1))
        return shuffled  # (B, out_channels, ~H / 2, ~W / 2)


def _stage(in_channels: int, out_channels: int, *, num_blocks: int) -> nn.Sequential:
    rest = [_Block(out_channels) for _ in range(num_blocks - 1)]
    return nn.Sequential(_DownBlock(in_channels, out_channels), *rest)


def _conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


def _depthwise3x3(num_channels: int, *, stride: int) -> nn.Conv2d:
    return nn.Conv2d(
        num_channels,
        num_channels,
        3,
        stride=stride,
        padding=1,
        groups=num_channels,
        bias=False,
    )

"""ShuffleNet for small images (Zhang et al., CVPR 2018, arXiv:1707.01083), as in the CRD protocol.

Three groups and 240, 480 and 960 channels. The stem is a 1x1 convolution that keeps the resolution,
and ReLU follows the depthwise convolution too, where the paper has none. Weights start as PyTorch's
layers do.

Shape letters: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEM = 24
_GROUPS = 3


class ShuffleNetV1(nn.Module):
    """Grouped bottlenecks with shuffled channels, and the classifier ``linear``.

    Args:
        num_classes: number of logits, K.
        in_channels: channels of the images, C.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 240, num_blocks=4)
        self.layer2 = _stage(240, 480, num_blocks=8)
        self.layer3 = _stage(480, 960, num_blocks=4)
        self.linear = nn.Linear(960, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) of any size to logits (B, K)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        features = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, 960)
        logits: Tensor = self.linear(features)  # (B, K)
        return logits


class _Block(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    Its output is added to the input; or it halves the resolution, and the pooled input's channels
    are part of ``out_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        new_channels = out_channels - in_channels if halves else out_channels
        channels = new_channels // 4
        # The paper does not group the few channels of the stem.
        groups = 1 if in_channels == _STEM else _GROUPS
        self.conv1 = nn.Conv2d(in_channels, channels, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.shuffle1 = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(
            channels,
            channels,
            3,
            stride=2 if halves else 1,
            padding=1,
            groups=channels,
            bias=False,
        )
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, new_channels, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(new_channels)

    def forward(self, x: Tensor) -> Tensor:
        new = self.shuffle1(F.relu(self.bn1(self.conv1(x))))
        new = F.relu(self.bn2(self.conv2(new)))
        new = self.bn3(self.conv3(new))
        if not self.halves:
            return F.relu(new + x)
        pooled = F.avg_pool2d(x, 3, stride=2, padding=1)
        return F.relu(torch.cat([new, pooled], 1))  # (B, out_channels, ~H / 2, ~W / 2)


def _stage(in_channels: int, out_channels: int, *, num_blocks: int) -> nn.Sequential:
    first = _Block(in_channels, out_channels, halves=True)
    rest = [_Block(out_channels, out_channels, halves=False) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)

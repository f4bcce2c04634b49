"""ResNet-50 for small images (He et al., CVPR 2016, arXiv:1512.03385), as in the CRD protocol.

ImageNet's four stages of bottlenecks behind a stem that keeps the resolution: one 3x3 convolution
and no pooling. Unlike in torchvision's, a projection is called `shortcut` and the classifier
`linear`. Convolutions start with variance 2 / fan-out.

Shape letters: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_EXPANSION = 4


class ResNet50(nn.Module):
    """A bottleneck network whose classifier is ``linear``.

    Args:
        num_classes: number of logits, K.
        in_channels: channels of the images, C.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, 64, size=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, num_blocks=3, stride=1)
        self.layer2 = _stage(256, 128, num_blocks=4, stride=2)
        self.layer3 = _stage(512, 256, num_blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, num_blocks=3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) of any size to logits (B, K)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, 2048)
        logits: Tensor = self.linear(features)  # (B, K)
        return logits


class _Bottleneck(nn.Module):
    """A 3x3 convolution, which has the stride, between two 1x1, of which the last one widens."""

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        out_channels = _EXPANSION * channels
        self.conv1 = _conv(in_channels, channels, size=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, size=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, out_channels, size=1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(_conv(in_channels, out_channels, size=1, stride=stride))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        return F.relu(self.bn3(self.conv3(residual)) + self.shortcut(x))


def _stage(in_channels: int, channels: int, *, num_blocks: int, stride: int) -> nn.Sequential:
    first = _Bottleneck(in_channels, channels, stride=stride)
    rest = [_Bottleneck(_EXPANSION * channels, channels, stride=1) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


def _conv(in_channels: int, out_channels: int, *, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False)

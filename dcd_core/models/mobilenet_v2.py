"""MobileNetV2 of half width for small images (Sandler et al., CVPR 2018, arXiv:1801.04381).

As in the CRD protocol, which differs from the paper: ReLU in place of ReLU6, stride 1 in the second
stage, an expanding convolution in the first block too, where it does not expand, and no dropout.
Convolutions start with variance 2 / fan-out, the classifier with standard deviation 0.01 and its
bias at zero.

Shape letters: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# Expansion, channels, number of blocks and stride of the first one, by stage.
_STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
_STEM = 16
_FEATURES = 1280


class MobileNetV2(nn.Module):
    """Inverted residuals before a linear layer, which is ``classifier.0``.

    Args:
        num_classes: number of logits, K.
        in_channels: channels of the images, C.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_norm(in_channels, _STEM, size=3, stride=2), _relu())
        stages, before = [], _STEM
        for expansion, channels, num_blocks, stride in _STAGES:
            first = _Block(before, channels, expansion=expansion, stride=stride)
            rest = [
                _Block(channels, channels, expansion=expansion, stride=1)
                for _ in range(num_blocks - 1)
            ]
            stages.append(nn.Sequential(first, *rest))
            before = channels
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*_conv_norm(before, _FEATURES, size=1), _relu())
        classifier = nn.Linear(_FEATURES, num_classes)
        self.classifier = nn.Sequential(classifier)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) of any size to logits (B, K)."""
        x = self.conv2(self.blocks(self.conv1(images)))
        features = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, 1280)
        logits: Tensor = self.classifier(features)  # (B, K)
        return logits


class _Block(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without activation."""

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        channels = expansion * in_channels
        self.conv = nn.Sequential(
            *_conv_norm(in_channels, channels, size=1),
            _relu(),
            *_conv_norm(channels, channels, size=3, stride=stride, groups=channels),
            _relu(),
            *_conv_norm(channels, out_channels, size=1),
        )
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(x)
        return x + output if self.is_residual else output


def _conv_norm(
    in_channels: int, out_channels: int, *, size: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        size,
        stride=stride,
        padding=size // 2,
        groups=groups,
        bias=False,
    )
    return conv, nn.BatchNorm2d(out_channels)


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)

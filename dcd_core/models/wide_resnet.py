"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146).

`wrn_16_2` has depth 6n + 4 = 16, with n pre-activation blocks in each of three stages, and twice
the channels of a plain network. As in the CRD protocol, a stage is `blockN.layer` and a projection
`convShortcut`, and there is no dropout. Convolutions start with variance 2 / fan-out, the
classifier's bias at zero.

Shape letters: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

_STEM = 16


class WideResNet(nn.Module):
    """A pre-activation residual network whose classifier is ``fc``.

    Args:
        depth: number of weighted layers on the main path, 6n + 4.
        widening: factor of the stages' channels, which are 16, 32 and 64 times it.
        num_classes: number of logits, K.
        in_channels: channels of the images, C.
    """

    def __init__(
        self, *, depth: int, widening: int, num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 != 0:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, such as 16, not {depth}")
        num_blocks = (depth - 4) // 6
        first, second, third = 16 * widening, 32 * widening, 64 * widening
        self.conv1 = _conv(in_channels, _STEM, size=3)
        self.block1 = _Stage(_STEM, first, num_blocks=num_blocks, stride=1)
        self.block2 = _Stage(first, second, num_blocks=num_blocks, stride=2)
        self.block3 = _Stage(second, third, num_blocks=num_blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) of any size to logits (B, K)."""
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        x = F.relu(self.bn1(x))
        features = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, 64 * widening)
        logits: Tensor = self.fc(features)  # (B, K)
        return logits


class _Stage(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, *, num_blocks: int, stride: int
    ) -> None:
        super().__init__()
        first = _Block(in_channels, out_channels, stride=stride)
        rest = [_Block(out_channels, out_channels, stride=1) for _ in range(num_blocks - 1)]
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output


class _Block(nn.Module):
    """BatchNorm and ReLU come before each convolution; a projection shares the first of them."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv(in_channels, out_channels, size=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv(out_channels, out_channels, size=3)
        self.convShortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.convShortcut = _conv(in_channels, out_channels, size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        shortcut: Tensor = x if self.convShortcut is None else self.convShortcut(active)
        return residual + shortcut


def _conv(in_channels: int, out_channels: int, *, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False)


WIDE_RESNETS: dict[str, Callable[..., nn.Module]] = {
    f"wrn_{depth}_{widening}": functools.partial(WideResNet, depth=depth, widening=widening)
    for depth in (16, 40)
    for widening in (1, 2)
}

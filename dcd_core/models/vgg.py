"""VGG networks with BatchNorm (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556).

Five blocks of 3x3 convolutions and one linear layer, as the CRD protocol has them: the last block's
output is averaged over the image, block 3 is pooled for images of 64 pixels only, convolutions have
a bias, and `vgg8` has a single convolution in each block. Convolutions start with variance
2 / fan-out, the classifier with standard deviation 0.01, all biases at zero.

Shape letters: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

_WIDTHS = (64, 128, 256, 512, 512)
_NUM_LAYERS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """A VGG network whose classifier is ``classifier``.

    Args:
        num_layers: convolutions in each of the five blocks.
        num_classes: number of logits, K.
        in_channels: channels of the images, C.
    """

    def __init__(
        self, *, num_layers: tuple[int, int, int, int, int], num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        before = (in_channels, *_WIDTHS[:-1])
        self.block0, self.block1, self.block2, self.block3, self.block4 = map(
            _block, before, _WIDTHS, num_layers
        )
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) with H, W >= 8 to logits (B, K)."""
        x = F.max_pool2d(self.block0(images), 2)
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        x = _pool_of_64_pixels(self.block3(x), height=images.shape[2])
        features = F.adaptive_avg_pool2d(self.block4(x), 1).flatten(1)  # (B, 512)
        logits: Tensor = self.classifier(features)  # (B, K)
        return logits


def _block(in_channels: int, out_channels: int, num_layers: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_layers):
        channels = in_channels if i == 0 else out_channels
        layers.append(nn.Conv2d(channels, out_channels, 3, padding=1))
        layers.append(nn.BatchNorm2d(out_channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


@torch.fx.wrap  # A trace records the call, and so stays true for images of any height.
def _pool_of_64_pixels(x: Tensor, *, height: int) -> Tensor:
    """Published weights for 64x64 images were trained with this pooling; larger ones go without."""
    return F.max_pool2d(x, 2) if height == 64 else x


VGGS: dict[str, Callable[..., nn.Module]] = {
    name: functools.partial(VGG, num_layers=num_layers) for name, num_layers in _NUM_LAYERS.items()
}

"""ResNet-vd with the parameter names of RT-DETR's PResNet.

He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", 2019 (the
variant "D": a stem of three 3x3 convolutions, average pooling in the strided shortcuts).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.models.backbone.base import Backbone, channels_last
from sparse_dset.models.layers import ConvNormLayer, Place, average_pool
from sparse_dset.structures import Support
from sparse_dset.structures.maps import FeatureMap

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class _Residual(nn.Module):
    """What basic and bottleneck blocks share: a shortcut, added before the last ReLU."""

    expansion: int

    def __init__(
        self, in_channels: int, channels: int, stride: int, first: bool, frozen: bool
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.short = (
            _shortcut(in_channels, out_channels, stride, frozen) if first else nn.Identity()
        )
        self.stride = stride

    def shortcut(self, x: FeatureMap, onto: Place) -> FeatureMap:
        return self.short(average_pool(x, onto) if self.stride == 2 else x)


class BasicBlock(_Residual):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, first: bool, frozen: bool
    ) -> None:
        super().__init__(in_channels, channels, stride, first, frozen)
        self.branch2a = ConvNormLayer(in_channels, channels, 3, stride, "relu", frozen)
        self.branch2b = ConvNormLayer(channels, channels, 3, 1, "relu", frozen)

    def forward(self, x: FeatureMap, onto: Place = None) -> FeatureMap:
        return self.branch2b(self.branch2a(x, onto), addend=self.shortcut(x, onto))


class BottleneckBlock(_Residual):
    """1x1, 3x3 (which carries the stride), 1x1."""

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, first: bool, frozen: bool
    ) -> None:
        super().__init__(in_channels, channels, stride, first, frozen)
        self.branch2a = ConvNormLayer(in_channels, channels, 1, 1, "relu", frozen)
        self.branch2b = ConvNormLayer(channels, channels, 3, stride, "relu", frozen)
        self.branch2c = ConvNormLayer(channels, channels * 4, 1, 1, "relu", frozen)

    def forward(self, x: FeatureMap, onto: Place = None) -> FeatureMap:
        hidden = self.branch2b(self.branch2a(x), onto)
        return self.branch2c(hidden, addend=self.shortcut(x, onto))


def _shortcut(in_channels: int, out_channels: int, stride: int, frozen: bool) -> nn.Module:
    conv = ConvNormLayer(in_channels, out_channels, 1, frozen_norm=frozen)
    # The pooling comes before it; released checkpoints count it as a module.
    return conv if stride == 1 else nn.Sequential(OrderedDict(conv=conv))


class _Stage(nn.Module):
    def __init__(
        self,
        block: type[BasicBlock] | type[BottleneckBlock],
        in_channels: int,
        channels: int,
        count: int,
        stride: int,
        frozen: bool,
    ) -> None:
        super().__init__()
        out_channels = channels * block.expansion
        self.blocks = nn.ModuleList(
            block(
                in_channels if i == 0 else out_channels,
                channels,
                stride if i == 0 else 1,
                first=i == 0,
                frozen=frozen,
            )
            for i in range(count)
        )

    def forward(self, x: FeatureMap, onto: Place = None) -> FeatureMap:
        for block in self.blocks:
            x = block(x, onto)
        return x


class ResNetVd(Backbone):
    """ResNet-vd, whose four stages are the four maps.

    Args:
        depth: 18, 34, 50 or 101.
        frozen_norm: batch normalisation with constant statistics and parameters, as in the
            released R50 and R101 models.
    """

    sees_padding = False
    """It is made of convolutions and poolings alone."""

    def __init__(self, depth: int, frozen_norm: bool = False) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth must be one of {sorted(_BLOCKS)}, got {depth}")
        block = BasicBlock if depth < 50 else BottleneckBlock
        self.conv1 = nn.Sequential(
            OrderedDict(
                conv1_1=ConvNormLayer(3, 32, 3, 2, "relu", frozen_norm),
                conv1_2=ConvNormLayer(32, 32, 3, 1, "relu", frozen_norm),
                conv1_3=ConvNormLayer(32, 64, 3, 1, "relu", frozen_norm),
            )
        )
        widths = (64, 128, 256, 512)
        inputs = (64, *(w * block.expansion for w in widths[:-1]))
        self.res_layers = nn.ModuleList(
            _Stage(block, c_in, c, count, 1 if i == 0 else 2, frozen_norm)
            for i, (c_in, c, count) in enumerate(zip(inputs, widths, _BLOCKS[depth], strict=True))
        )
        self.channels = [w * block.expansion for w in widths]

    def forward(
        self,
        x: FeatureMap,
        levels: range = range(4),
        onto: Sequence[Support] = (),
    ) -> list[FeatureMap]:
        if isinstance(x, Tensor) and levels.start == 0:
            x = F.max_pool2d(self.conv1(channels_last(x)), 3, stride=2, padding=1)
        maps = []
        for i, level in enumerate(levels):
            x = self.res_layers[level](x, onto[i] if onto else None)
            maps.append(x)
        return maps

"""RT-DETR's cross-scale fusion: a feature pyramid (FPN) followed by path aggregation (PAN).

Lv et al., "DETRs Beat YOLOs on Real-time Object Detection", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.models.layers import (
    ConvNormLayer,
    Fusable,
    FusedConv,
    add,
    concat,
    conv2d,
    map_of,
    parent_rows,
    pointwise,
    rows_of,
    upsample_onto,
)
from sparse_dset.ops import pointwise_conv
from sparse_dset.structures.maps import FeatureMap


class RepVggBlock(Fusable):
    """A 3x3 and a 1x1 convolution side by side, one 3x3 convolution in evaluation.

    Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", 2021.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormLayer(channels, channels, 3)
        self.conv2 = ConvNormLayer(channels, channels, 1)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Returns weight and bias of the one convolution that equals the block in evaluation."""
        (weight3, bias3), (weight1, bias1) = self.conv1.folded(), self.conv2.folded()
        return weight3 + F.pad(weight1, (1, 1, 1, 1)), bias3 + bias1

    def fused(self) -> FusedConv:
        return FusedConv(*self.folded(), stride=1, activation="silu")

    def forward(self, x: FeatureMap) -> FeatureMap:
        both = add(self.conv1(x), self.conv2(x)) if self.training else conv2d(x, *self.folded())
        return pointwise(both, F.silu)


class CSPRepLayer(Fusable):
    """A cross-stage-partial block of RepVGG blocks over two maps.

    Args:
        in_channels: of both maps together.
        upsamples: the first map is of the next coarser level.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        expansion: float,
        upsamples: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.upsamples = upsamples
        self.conv1 = ConvNormLayer(in_channels, hidden, 1, activation="silu")
        self.conv2 = ConvNormLayer(in_channels, hidden, 1, activation="silu")
        self.bottlenecks = nn.Sequential(*(RepVggBlock(hidden) for _ in range(blocks)))
        self.conv3 = (
            nn.Identity()
            if hidden == out_channels
            else ConvNormLayer(hidden, out_channels, 1, activation="silu")
        )

    def fused(self) -> FusedCSPLayer:
        return FusedCSPLayer(self)

    def forward(self, first: FeatureMap, second: FeatureMap) -> FeatureMap:
        if self.upsamples:
            first = upsample_onto(first, onto=second)
        x = concat(first, second)
        return self.conv3(add(self.bottlenecks(self.conv1(x)), self.conv2(x)))


class FusedCSPLayer(nn.Module):
    """The inference form of a ``CSPRepLayer``.

    Its two first convolutions share one pass. They are linear and of size 1, so each of the two
    maps goes through its own part of their weights, the coarser one before it is upsampled: nothing
    is concatenated, and the coarser map costs a quarter.
    """

    def __init__(self, layer: CSPRepLayer) -> None:
        super().__init__()
        folded = zip(layer.conv1.folded(), layer.conv2.folded(), strict=True)
        weight, bias = (torch.cat(parts) for parts in folded)
        halves = weight.flatten(1).chunk(2, dim=1)
        self.weight1, self.weight2, self.bias = (
            nn.Parameter(part.contiguous(), requires_grad=False) for part in (*halves, bias)
        )
        self.upsamples = layer.upsamples
        self.bottlenecks = layer.bottlenecks
        self.conv3 = layer.conv3

    def forward(self, first: FeatureMap, second: FeatureMap) -> FeatureMap:
        part = pointwise_conv(rows_of(first), self.weight1, None)
        parents = parent_rows(second, first) if self.upsamples else None
        both = pointwise_conv(rows_of(second), self.weight2, self.bias, "silu", part, parents)
        main, side = both.chunk(2, dim=1)
        rows = rows_of(self.bottlenecks(map_of(main, second)))
        rows += side
        return self.conv3(map_of(rows, second))


class FpnPan(nn.Module):
    """Fuses the levels top-down, then bottom-up.

    Args:
        width: channels of every level.
        levels: number of levels.
        blocks: RepVGG blocks per fusion.
        expansion: hidden width of a fusion block over ``width``.
    """

    def __init__(
        self, width: int, levels: int = 3, blocks: int = 3, expansion: float = 1.0
    ) -> None:
        super().__init__()

        def fusion(upsamples: bool) -> CSPRepLayer:
            return CSPRepLayer(2 * width, width, blocks, expansion, upsamples)

        steps = range(levels - 1)
        self.lateral_convs = nn.ModuleList(
            ConvNormLayer(width, width, 1, activation="silu") for _ in steps
        )
        self.fpn_blocks = nn.ModuleList(fusion(upsamples=True) for _ in steps)
        self.downsample_convs = nn.ModuleList(
            ConvNormLayer(width, width, 3, stride=2, activation="silu") for _ in steps
        )
        self.pan_blocks = nn.ModuleList(fusion(upsamples=False) for _ in steps)

    def merge_levels(self, maps: Sequence[FeatureMap]) -> list[FeatureMap]:
        """Fuses maps of ``width`` channels, finest level first, and returns as many."""
        coarse, inner = maps[-1], []
        for lateral, block, fine in zip(
            self.lateral_convs, self.fpn_blocks, reversed(maps[:-1]), strict=True
        ):
            coarse = lateral(coarse)
            inner.append(coarse)
            coarse = block(coarse, fine)

        outputs = [coarse]
        for down, block, lateral_map in zip(
            self.downsample_convs, self.pan_blocks, reversed(inner), strict=True
        ):
            lower = down(outputs[-1], onto=lateral_map)
            outputs.append(block(lower, lateral_map))
        return outputs

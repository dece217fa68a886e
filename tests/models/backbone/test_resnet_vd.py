from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import FrozenBatchNorm2d

from sparse_dset.models.backbone import ResNetVd
from sparse_dset.models.backbone.resnet_vd import BasicBlock, BottleneckBlock


@pytest.mark.parametrize(
    ("depth", "channels", "blocks"),
    [
        (18, [64, 128, 256, 512], [2, 2, 2, 2]),
        (34, [64, 128, 256, 512], [3, 4, 6, 3]),
        (50, [256, 512, 1024, 2048], [3, 4, 6, 3]),
        (101, [256, 512, 1024, 2048], [3, 4, 23, 3]),
    ],
)
def test_shapes(depth, channels, blocks):
    backbone = ResNetVd(depth).eval()
    assert backbone.channels == channels
    assert backbone.out_channels == channels[1:]
    assert [len(stage.blocks) for stage in backbone.res_layers] == blocks
    with torch.no_grad():
        stages = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(s.shape) for s in stages] == [
        (1, c, 64 // stride, 96 // stride)
        for c, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def _main_path(block, x):
    """The convolutions of a block without the shortcut and the last activation."""
    *first, last = [m for name, m in block.named_children() if name.startswith("branch")]
    for layer in first:
        x = layer(x)
    return F.conv2d(x, *last.folded(), padding=last.conv.padding)


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_add_a_shortcut_that_averages_when_strided(block, stride):
    layer = block(8, 4, stride, first=True, frozen=False).eval()
    x = torch.randn(2, 8, 6, 6)
    pooled = x if stride == 1 else F.avg_pool2d(x, 2)
    projection = layer.short if stride == 1 else layer.short.conv
    torch.testing.assert_close(layer(x), (_main_path(layer, x) + projection(pooled)).relu())
    later = block(4 * block.expansion, 4, 1, first=False, frozen=False).eval()
    x = torch.randn(2, 4 * block.expansion, 6, 6)
    torch.testing.assert_close(later(x), (_main_path(later, x) + x).relu())


def test_frozen_norms_are_constant():
    backbone = ResNetVd(18, frozen_norm=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 3 + 16 + 4
    assert not any("norm" in name for name, _ in backbone.named_parameters())


def test_an_unknown_depth_is_refused():
    with pytest.raises(ValueError, match=r"\[18, 34, 50, 101\], got 19"):
        ResNetVd(19)

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_dset.models.neck.fpn_pan import CSPRepLayer, FpnPan, RepVggBlock
from sparse_dset.ops.activations import activate
from sparse_dset.structures import MaskedMap, SparseMap, Support
from tests.models.detectors import nested_masks


def _spread(module):
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2.0)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
    return module.double()


def _levels(batch=2, size=(3, 5), channels=8):
    return [
        torch.randn(batch, channels, size[0] * f, size[1] * f, dtype=torch.float64)
        for f in (4, 2, 1)
    ]


def _unfolded(layer, x):
    return activate(layer.norm(layer.conv(x)), layer.activation)


def _branches(block, x):
    return F.silu(_unfolded(block.conv1, x) + _unfolded(block.conv2, x))


def _fusion_by_hand(layer, x):
    main = _unfolded(layer.conv1, x)
    for block in layer.bottlenecks:
        main = _branches(block, main)
    both = main + _unfolded(layer.conv2, x)
    return both if isinstance(layer.conv3, nn.Identity) else _unfolded(layer.conv3, both)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_folded_block_equals_its_branches(training):
    block = _spread(RepVggBlock(8)).train(training)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(block(x), _branches(block, x))


@pytest.mark.parametrize("expansion", [0.5, 1.0])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_fusion_by_hand(training, expansion):
    neck = _spread(FpnPan(8, blocks=2, expansion=expansion)).train(training)
    s3, s4, s5 = _levels()

    def up(x):
        return F.interpolate(x, scale_factor=2)

    top5 = _unfolded(neck.lateral_convs[0], s5)
    mid = _fusion_by_hand(neck.fpn_blocks[0], torch.cat([up(top5), s4], 1))
    top4 = _unfolded(neck.lateral_convs[1], mid)
    p3 = _fusion_by_hand(neck.fpn_blocks[1], torch.cat([up(top4), s3], 1))
    down3 = _unfolded(neck.downsample_convs[0], p3)
    p4 = _fusion_by_hand(neck.pan_blocks[0], torch.cat([down3, top4], 1))
    down4 = _unfolded(neck.downsample_convs[1], p4)
    p5 = _fusion_by_hand(neck.pan_blocks[1], torch.cat([down4, top5], 1))
    for ours, expected in zip(neck.merge_levels([s3, s4, s5]), (p3, p4, p5), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_all_kinds_of_map_agree(training):
    neck = _spread(FpnPan(8, blocks=2, expansion=0.5)).train(training)
    levels = _levels()

    def fuse(kind, masks):
        supports = [Support.from_mask(m) for m in masks]
        maps = [kind.from_dense(t, s) for t, s in zip(levels, supports, strict=True)]
        return [m.to_dense() for m in neck.merge_levels(maps)]

    full = [torch.ones(2, *t.shape[2:], dtype=torch.bool) for t in levels]
    for dense, masked, sparse in zip(
        neck.merge_levels(levels), fuse(MaskedMap, full), fuse(SparseMap, full), strict=True
    ):
        torch.testing.assert_close(masked, dense)
        torch.testing.assert_close(sparse, dense)
    pruned = nested_masks((3, 5), [0.6, 0.2])
    for masked, sparse, mask in zip(
        fuse(MaskedMap, pruned), fuse(SparseMap, pruned), pruned, strict=True
    ):
        torch.testing.assert_close(sparse, masked)
        assert not sparse.transpose(0, 1)[:, ~mask].any()


def test_the_last_convolution_is_left_out_where_widths_agree():
    assert isinstance(CSPRepLayer(16, 8, 1, 1.0).conv3, nn.Identity)
    assert not isinstance(CSPRepLayer(16, 8, 1, 0.5).conv3, nn.Identity)

"""Convolutions of other libraries on kept sites: as on a masked map, or refused with a reason."""

from __future__ import annotations

import pytest
import torch
from timm.layers import ScaledStdConv2d, StdConv2d
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from sparse_dset import build_detector
from sparse_dset.models.backbone.flow import Flow
from sparse_dset.structures import MaskedMap, SparseMap, Support


class _Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class _ScaledByChannel(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * self.weight[:, :1, :1, 0]


def _run(conv, kind, dense, fine, coarse):
    out = conv(Flow(kind.from_dense(dense, fine), (coarse,))).map
    return out.tensor if isinstance(out, MaskedMap) else out.to_dense()


def _sites(height, width):
    mask = torch.rand(2, height, width) < 0.5
    rows, columns = -(-height // 2), -(-width // 2)
    coarse = torch.zeros(2, rows, columns, dtype=torch.bool)
    image, y, x = mask.nonzero(as_tuple=True)
    coarse[image, y // 2, x // 2] = True
    return Support.from_mask(mask), Support.from_mask(coarse)


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (6, 11)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        nn.Conv2d,
        StdConv2d,
        ScaledStdConv2d,
        _Doubled,
        lambda *a, **o: nn.utils.parametrizations.weight_norm(nn.Conv2d(*a, **o)),
    ],
    ids=["plain", "standardised", "scaled", "doubled", "weight norm"],
)
@torch.no_grad()
def test_kept_sites_give_what_a_masked_map_gives(make, stride, size):
    conv = make(4, 6, 3, stride=stride, padding=1).double().eval()
    dense, sites = torch.randn(2, 4, *size, dtype=torch.float64), _sites(*size)
    ours = _run(conv, SparseMap, dense, *sites)
    theirs = _run(conv, MaskedMap, dense, *sites)
    torch.testing.assert_close(ours, theirs)
    inside = sites[stride - 1].mask().unsqueeze(1)
    expected = conv(dense * sites[0].mask().unsqueeze(1)) * inside
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", [SparseMap, MaskedMap])
@pytest.mark.parametrize(
    "conv",
    [
        Conv2dSame(4, 6, 3, stride=2),
        Conv2dSame(4, 6, 2),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, padding="valid"),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        _ScaledByChannel(4, 6, 3, padding=1),
    ],
)
def test_what_has_no_form_is_refused_with_the_reason(conv, kind):
    dense, sites = torch.randn(2, 4, 8, 12), _sites(8, 12)
    with pytest.raises((ValueError, AttributeError), match="no form on kept sites"):
        _run(conv, kind, dense, *sites)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_nfnet", "resnetv2_50x1_bit"])
def test_an_early_decision_in_such_a_backbone_is_refused(name):
    overrides = [f"model.backbone.name={name}", "model.backbone.frozen=[]", "pruner.stage=s3"]
    model = build_detector("nano", 3, overrides, pretrained=False)
    with pytest.raises(ValueError, match=r"pruner\.stage=s3: this backbone .* choose"):
        model.check_decision()

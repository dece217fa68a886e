"""Checks that PyTorch's FLOP counter sees the operators, pair by pair."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparse_dset.ops import backend_problems, dense_deform_attn, sparse_conv2d, sparse_deform_attn
from sparse_dset.ops.flops import conv_flops, sampling_flops
from sparse_dset.structures import Support


def _count(function, *arguments, **options) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*arguments, **options)
    return counter.get_total_flops()


def _pairs(mask: torch.Tensor, out_mask: torch.Tensor, stride: int) -> int:
    """Counts pairs of an output site and a kept site in its window, one by one."""
    kept = {tuple(site) for site in mask.nonzero().tolist()}
    return sum(
        (b, y * stride + dy, x * stride + dx) in kept
        for b, y, x in out_mask.nonzero().tolist()
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    )


@pytest.mark.parametrize("backend", ["reference", "spconv"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("train", [False, True])
def test_convolution_counts_pairs(train: bool, stride: int, backend: str) -> None:
    if backend_problems()[backend]:
        pytest.skip(backend_problems()[backend])
    mask = torch.rand(2, 7, 9) < 0.4
    out_mask = mask if stride == 1 else torch.rand(2, 4, 5) < 0.6
    support, out_support = Support.from_mask(mask), Support.from_mask(out_mask)
    features = torch.randn(support.num_sites, 5, requires_grad=train)
    weight, bias = torch.randn(6, 5, 3, 3), torch.randn(6)
    counted = _count(
        sparse_conv2d, features, weight, bias, support, stride, out_support, backend=backend
    )
    assert counted == 2 * _pairs(mask, out_mask, stride) * 5 * 6


def test_full_support_counts_the_border_out() -> None:
    table = Support.full(1, 4, 5).neighbors()
    assert conv_flops(table, 1, 1) == 2 * (3 * 4 - 2) * (3 * 5 - 2)


def test_sampling_is_not_in_the_total() -> None:
    support = Support.full(2, 4, 5)
    locations, weights = torch.rand(2, 3, 2, 1, 4, 2), torch.rand(2, 3, 2, 1, 4)
    extents = torch.tensor([[[4.0, 5.0]]]).expand(2, 1, 2)
    value = torch.randn(support.num_sites, 6)
    assert _count(sparse_deform_attn, value, [support], locations, weights, extents) == 0
    maps = [torch.randn(2, 6, 4, 5)]
    assert _count(dense_deform_attn, maps, locations, weights, extents) == 0
    assert sampling_flops(weights.numel(), 3) == 2 * 4 * (2 * 3 * 2 * 4) * 3

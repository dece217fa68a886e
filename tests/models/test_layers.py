from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_dset.models.layers import (
    MLP,
    ConvNormLayer,
    at_least_float32,
    batch_norm,
    concat,
    conv2d,
    pointwise,
    upsample_onto,
    within_half,
)
from sparse_dset.structures import MaskedMap, SparseMap, Support


def _maps(shape=(2, 5, 7), channels=3, share=0.5):
    """One map as a masked and as a sparse one."""
    batch, height, width = shape
    support = Support.from_mask(torch.rand(shape) < share)
    dense = torch.randn(batch, channels, height, width, dtype=torch.float64)
    return MaskedMap.from_dense(dense, support), SparseMap.from_dense(dense, support)


def _assert_same(masked, sparse):
    assert masked.support.same_sites(sparse.support)
    torch.testing.assert_close(sparse.to_dense(), masked.tensor)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_convolutions_never_dilate(size, bias):
    masked, sparse = _maps()
    weight = torch.randn(4, 3, size, size, dtype=torch.float64)
    offset = torch.randn(4, dtype=torch.float64) if bias else None
    expected = F.conv2d(masked.tensor, weight, offset, padding=size // 2)
    ours = conv2d(masked, weight, offset)
    torch.testing.assert_close(ours.tensor, expected * masked.support.mask()[:, None])
    _assert_same(ours, conv2d(sparse, weight, offset))
    torch.testing.assert_close(conv2d(masked.tensor, weight, offset), expected)


def test_strided_convolutions_are_evaluated_at_the_sites_of_the_target():
    masked, sparse = _maps((2, 6, 8))
    target_masked, target_sparse = _maps((2, 3, 4))
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    ours = conv2d(masked, weight, stride=2, onto=target_masked)
    expected = F.conv2d(masked.tensor, weight, stride=2, padding=1)
    torch.testing.assert_close(ours.tensor, expected * target_masked.support.mask()[:, None])
    _assert_same(ours, conv2d(sparse, weight, stride=2, onto=target_sparse))
    with pytest.raises(TypeError, match="target of a map with a support"):
        conv2d(sparse, weight, stride=2)


def test_upsampling_gives_each_site_its_parent():
    coarse_mask = torch.rand(2, 3, 4) < 0.6
    fine_mask = coarse_mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    fine_mask &= torch.rand(fine_mask.shape) < 0.6
    dense = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    fine = torch.zeros(2, 3, 6, 8, dtype=torch.float64)
    supports = Support.from_mask(coarse_mask), Support.from_mask(fine_mask)
    results = [
        upsample_onto(kind.from_dense(dense, supports[0]), kind.from_dense(fine, supports[1]))
        for kind in (MaskedMap, SparseMap)
    ]
    _assert_same(*results)
    for b, y, x in fine_mask.nonzero().tolist():
        assert torch.equal(results[0].tensor[b, :, y, x], dense[b, :, y // 2, x // 2])


def test_concatenation_and_pointwise_functions():
    masked, sparse = _maps()
    _assert_same(concat(masked, masked), concat(sparse, sparse))
    assert torch.equal(concat(masked.tensor, masked.tensor), concat(masked, masked).tensor)
    _assert_same(pointwise(masked, F.silu), pointwise(sparse, F.silu))


def test_normalisation_counts_kept_sites_only():
    masked, sparse = _maps()
    norms = [nn.BatchNorm2d(3).double().train() for _ in range(2)]
    ours, theirs = batch_norm(masked, norms[0]), batch_norm(sparse, norms[1])
    _assert_same(ours, theirs)
    rows = sparse.features
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(theirs.features, expected)
    torch.testing.assert_close(norms[0].running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norms[1].running_var, 0.9 + 0.1 * rows.var(0))


def _layer(frozen=False, **arguments):
    layer = ConvNormLayer(3, 4, 3, frozen_norm=frozen, **arguments).double()
    for buffer in (layer.norm.weight, layer.norm.running_var):
        nn.init.uniform_(buffer, 0.5, 2.0)
    for buffer in (layer.norm.bias, layer.norm.running_mean):
        nn.init.normal_(buffer)
    return layer


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_folded_layer_equals_convolution_and_norm(training, frozen):
    layer = _layer(frozen, stride=2, activation="relu").train(training)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    convolved = layer.conv(x)
    statistics = (layer.norm.running_mean, layer.norm.running_var)
    if training and not frozen:
        statistics = (convolved.mean((0, 2, 3)), convolved.var((0, 2, 3), unbiased=False))
    mean, var = (s[:, None, None] for s in statistics)
    weight, bias = layer.norm.weight[:, None, None], layer.norm.bias[:, None, None]
    expected = ((convolved - mean) / (var + layer.norm.eps).sqrt() * weight + bias).relu()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_for_statistics_train_with_the_running_ones(count):
    layer = _layer().train()
    mask = torch.zeros(2, 5, 7, dtype=torch.bool)
    mask[1, 2, 3] = count == 1
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    support = Support.from_mask(mask)
    for kind in (SparseMap, MaskedMap):
        out = layer(kind.from_dense(x, support))
        out.to_dense().sum().backward()
        assert out.support.num_sites == count
        expected = layer.eval()(kind.from_dense(x, support))
        torch.testing.assert_close(out.to_dense(), expected.to_dense())
        layer.train()
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_mlp():
    mlp = MLP(3, 5, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), mlp.layers[1](mlp.layers[0](x).relu()))


def test_half_types():
    big = torch.tensor([float("inf"), -float("inf"), 1.0])
    assert within_half(big.half()).tolist() == [65504.0, -65504.0, 1.0]
    assert torch.equal(within_half(big), big)
    assert at_least_float32(big.half()).dtype == torch.float32
    assert at_least_float32(big.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", ["tensor", "sparse"])
def test_a_single_site_is_normalised_by_running_statistics(kind):
    layer = ConvNormLayer(4, 4, 1).train()
    x = torch.randn(1, 4, 1, 1)
    full = Support.full(1, 1, 1)
    out = layer(x if kind == "tensor" else SparseMap.from_dense(x, full))
    expected = layer.eval()(x)
    torch.testing.assert_close(out if kind == "tensor" else out.to_dense(), expected)

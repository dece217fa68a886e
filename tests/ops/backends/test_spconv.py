"""Checks spconv against the reference, and the traps around it."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

from sparse_dset.ops import backend_problems, resolve_backend, sparse_conv2d
from sparse_dset.ops.backends import spconv
from sparse_dset.structures import SparseMap, Support

needs_spconv = pytest.mark.skipif(
    backend_problems()["spconv"] != "", reason=backend_problems()["spconv"]
)


def _supports(stride: int) -> tuple[Support, Support]:
    support = Support.from_mask(torch.rand(3, 9, 12) < 0.4)
    if stride == 1:
        return support, support
    return support, Support.from_mask(torch.rand(3, 5, 6) < 0.6)


@needs_spconv
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_reference(stride: int) -> None:
    support, out_support = _supports(stride)
    features = torch.randn(support.num_sites, 8, requires_grad=True)
    weight = torch.randn(16, 8, 3, 3, requires_grad=True)
    bias = torch.randn(16, requires_grad=True)
    inputs = [features, weight, bias]
    grad = torch.randn(out_support.num_sites, 16)
    results = []
    for backend in ("spconv", "reference"):
        out = sparse_conv2d(*inputs, support, stride, out_support, backend=backend)
        results.append([out.detach(), *torch.autograd.grad(out, inputs, grad)])
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


@needs_spconv
def test_second_call_reuses_the_tables_and_they_go_with_the_support() -> None:
    support = Support.from_mask(torch.rand(2, 6, 6) < 0.5)
    gc.collect()
    before = len(spconv._tables)
    features, weight = torch.randn(support.num_sites, 8), torch.randn(8, 8, 3, 3)
    first = sparse_conv2d(features, weight, None, support, backend="spconv")
    second = sparse_conv2d(features, weight, None, support, backend="spconv")
    torch.testing.assert_close(first, second)
    assert len(spconv._tables) == before + 1
    del support
    gc.collect()
    assert len(spconv._tables) == before


@needs_spconv
def test_stride_two_does_not_dilate() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 1, 1] = True  # an odd site lies in the windows of four coarse sites
    support = Support.from_mask(mask)
    out_mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    out_mask[0, 0, 0] = out_mask[0, 3, 3] = True  # spconv does not make the second
    out_support = Support.from_mask(out_mask)
    features, weight = torch.randn(1, 4), torch.randn(4, 4, 3, 3)
    bias = torch.randn(4)
    out = sparse_conv2d(features, weight, bias, support, 2, out_support, backend="spconv")
    torch.testing.assert_close(out[0], weight[:, :, 2, 2] @ features[0] + bias)
    torch.testing.assert_close(out[1], bias)


@needs_spconv
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("empty", ["in", "out"])
def test_zero_sites_never_reach_spconv(empty: str, stride: int) -> None:
    support = Support.from_mask(torch.full((2, 4, 6), empty != "in"))
    out_support = support
    if stride == 2:
        out_support = Support.from_mask(torch.full((2, 2, 3), empty != "out"))
    features = torch.randn(support.num_sites, 4, requires_grad=True)
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    bias = torch.randn(4)
    out = sparse_conv2d(features, weight, bias, support, stride, out_support, backend="spconv")
    out.sum().backward()
    assert out.shape == (out_support.num_sites, 4)
    assert features.grad.shape == features.shape
    if empty == "in":
        torch.testing.assert_close(out, bias.expand_as(out))
        assert not weight.grad.any()


@needs_spconv
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    support, _ = _supports(1)
    features, weight = torch.randn(support.num_sites, 8), torch.randn(8, 8, 3, 3) / 72**0.5
    expected = sparse_conv2d(features, weight, None, support)
    actual = sparse_conv2d(features.to(dtype), weight.to(dtype), None, support, backend="spconv")
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, atol=2e-2, rtol=2e-2)
    with torch.autocast("cpu", dtype=dtype):
        mixed = sparse_conv2d(features, weight, None, support, backend="spconv")
    torch.testing.assert_close(mixed.float(), expected, atol=2e-2, rtol=2e-2)


@needs_spconv
def test_sites_that_are_not_contiguous_are_refused() -> None:
    mask = torch.rand(1, 6, 6) < 0.5
    indices = mask.nonzero().int()
    support = Support(indices.t().contiguous().t(), 1, 6, 6)
    with pytest.raises(AssertionError):
        sparse_conv2d(
            torch.randn(support.num_sites, 4),
            torch.randn(4, 4, 3, 3),
            None,
            support,
            backend="spconv",
        )


@needs_spconv
def test_one_by_one_weights_are_refused() -> None:
    support, _ = _supports(1)
    with pytest.raises(ValueError, match="linear layer"):
        sparse_conv2d(
            torch.randn(support.num_sites, 4),
            torch.randn(4, 4, 1, 1),
            None,
            support,
            backend="spconv",
        )


@needs_spconv
def test_another_order_of_sites_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    support, _ = _supports(1)
    run = spconv._run

    def shuffled(*arguments):
        rows, sites = run(*arguments)
        return rows.flip(0), sites.flip(0)

    monkeypatch.setattr(spconv, "_run", shuffled)
    features, weight = torch.randn(support.num_sites, 4), torch.randn(4, 4, 3, 3)
    with pytest.raises(RuntimeError, match="another order"):
        sparse_conv2d(features, weight, None, support, backend="spconv")

    support, out_support = _supports(2)
    features = torch.randn(support.num_sites, 4)
    torch.testing.assert_close(
        sparse_conv2d(features, weight, None, support, 2, out_support, backend="spconv"),
        sparse_conv2d(features, weight, None, support, 2, out_support),
    )


@needs_spconv
def test_every_site_is_right_every_time() -> None:
    mask = torch.zeros(6400, dtype=torch.bool)
    mask[torch.randperm(6400)[:1728]] = True
    support = Support.from_mask(mask.view(1, 80, 80))
    features, weight = torch.randn(1728, 128), torch.randn(128, 128, 3, 3) / 1152**0.5
    dense = F.conv2d(SparseMap(features, support).to_dense(), weight, padding=1)
    expected = SparseMap.from_dense(dense, support).features
    for _ in range(20):
        out = sparse_conv2d(features, weight, None, support, backend="spconv")
        assert (out - expected).abs().max() < 1e-4


@needs_spconv
@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride: int) -> None:
    support, out_support = _supports(stride)
    table = out_support.strided_neighbors(support) if stride == 2 else support.neighbors()
    features = torch.randn(support.num_sites, 4, requires_grad=True)
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    arguments = (features, weight, table, support.indices, out_support.indices, support.shape)
    # The backward pass is spconv's own autograd, which cannot be traced.
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(spconv._sparse_conv2d_spconv, (*arguments, stride), test_utils=utils)


def test_a_package_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise OSError("undefined symbol: cuMemAlloc")

    spconv._spconv.cache_clear()
    monkeypatch.setattr(spconv.importlib, "import_module", load)
    with pytest.raises(ImportError, match=r"undefined symbol.*pip install spconv"):
        resolve_backend("spconv", "cpu")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spconv._spconv.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "spconv.pytorch", None)
    with pytest.raises(ImportError, match=r"package spconv .* 2\.3\.6: pip install spconv"):
        resolve_backend("spconv", "cpu")
    assert "pip install" in backend_problems()["spconv"]

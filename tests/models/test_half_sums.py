"""Sums over rows, sites and taps in half precision are the exact ones but for the last rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.engine.ema import ModelEMA
from sparse_dset.models.backbone.padding import padding_stays_zero
from sparse_dset.models.layers import average_pool, upsample_onto
from sparse_dset.models.moe import MoEFeedForward
from sparse_dset.models.synced_norm import SyncedBatchNorm, norm_rows
from sparse_dset.ops import depthwise_conv2d, sparse_conv2d
from sparse_dset.structures import SparseMap, Support

pytestmark = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def assert_rounded(own: Tensor | None, exact: Tensor, digits: float = 1.0) -> None:
    """The dtype stays, and the error is below so many units of its last digit (at the largest)."""
    assert own is not None
    assert own.isfinite().all()
    unit = torch.finfo(own.dtype).eps * float(exact.abs().max())
    assert float((own.double() - exact.double()).abs().max()) <= digits * unit


@pytest.mark.parametrize("value", [20_000.0, -30_000.0, 0.1])
def test_four_sites_are_averaged_as_a_dense_map_is(dtype: torch.dtype, value: float) -> None:
    tensor = torch.full((1, 2, 4, 4), value).to(dtype)
    support = Support.full(1, 4, 4, torch.device("cpu"))
    out = average_pool(SparseMap.from_dense(tensor, support), Support.full(1, 2, 2, "cpu"))
    assert isinstance(out, SparseMap)
    assert torch.equal(out.to_dense(), F.avg_pool2d(tensor, 2))


def test_gradients_of_four_children_add_up_in_their_parent(dtype: torch.dtype) -> None:
    coarse, fine = Support.full(1, 2, 2, "cpu"), Support.full(1, 4, 4, "cpu")
    rows = torch.zeros(4, 3).to(dtype).requires_grad_()
    out = upsample_onto(SparseMap(rows, coarse), fine)
    grad = torch.tensor([60_000.0, 60_000.0, -60_000.0, -59_000.0]).repeat(4)[:, None].expand(16, 3)
    out.features.backward(grad.to(dtype)[fine.parents(coarse).argsort(stable=True).argsort()])
    assert_rounded(rows.grad, torch.full((4, 3), float(grad[:4, 0].to(dtype).double().sum())))


def _convolve(kind: str, rows: Tensor, weight: Tensor, support: Support) -> Tensor:
    convolve: Any = sparse_conv2d if kind == "full" else depthwise_conv2d
    return convolve(rows, weight, None, support, backend="reference")


@pytest.mark.parametrize(("kind", "size"), [("full", 3), ("depthwise", 3), ("depthwise", 7)])
def test_convolutions_sum_taps_and_sites_exactly(dtype: torch.dtype, kind: str, size: int) -> None:
    support = Support.full(1, 160, 160, "cpu")
    shape = (4, 4, 3, 3) if kind == "full" else (4, 1, size, size)
    rows, weight = (torch.rand(n) + 0.5 for n in ((160 * 160, 4), shape))
    weight = weight - weight.mean((2, 3), keepdim=True)
    own = [t.to(dtype).requires_grad_() for t in (rows, weight)]
    exact = [t.detach().double().requires_grad_() for t in own]
    slopes = (torch.rand(160 * 160, 4) * 0.5).to(dtype)
    for (x, w), g in ((own, slopes), (exact, slopes.double())):
        out = _convolve(kind, x, w, support)
        out.backward(g)
        assert out.dtype == x.dtype
    assert_rounded(_convolve(kind, *own, support), _convolve(kind, *exact, support))
    for mine, theirs in zip(own, exact, strict=True):
        assert_rounded(mine.grad, theirs.grad)


def test_taps_that_cancel_do_not_overflow(dtype: torch.dtype) -> None:
    support = Support.full(1, 4, 4, "cpu")
    weight = torch.tensor([[3.0, 3.0, 3.0], [3.0, 1.0, -3.0], [-3.0, -3.0, -3.0]]).to(dtype)
    rows = torch.full((16, 1), 10_000.0).to(dtype).requires_grad_()
    out = _convolve("depthwise", rows, weight[None, None], support)
    middle = [5, 6, 9, 10]
    assert_rounded(out[middle], torch.full((4, 1), float(rows[0, 0])))
    out.backward(torch.full_like(out, 10_000.0))
    assert_rounded(rows.grad[middle], torch.full((4, 1), float(rows[0, 0])))


@pytest.mark.parametrize("top_k", [1, 3])
def test_experts_are_combined_in_float32(dtype: torch.dtype, top_k: int) -> None:
    moe = MoEFeedForward(8, 16, 4, top_k, F.gelu)
    tokens = torch.randn(50, 8)
    exact = copy.deepcopy(moe.to(dtype)).double()
    own = tokens.to(dtype).requires_grad_()
    wide = own.detach().double().requires_grad_()
    # Routers in half precision choose otherwise; the experts are to be the same.
    logits = exact.router(wide).detach()
    moe.router.forward = lambda x: logits.to(x.dtype) + 0 * x.sum()  # type: ignore[method-assign]
    exact.router.forward = lambda x: logits + 0 * x.sum()  # type: ignore[method-assign]
    out, expected = moe(own)[0], exact(wide)[0]
    assert out.dtype == dtype
    assert_rounded(out, expected, digits=4)
    out.backward(torch.ones_like(out))
    expected.backward(torch.ones_like(expected))
    assert_rounded(own.grad, wide.grad, digits=4)


@pytest.mark.parametrize("synced", [False, True])
def test_statistics_of_many_rows(dtype: torch.dtype, synced: bool) -> None:
    rows = (torch.randn(70_000, 2) * 5 + 100).to(dtype)
    mean, var = torch.zeros(2), torch.ones(2)
    weight, bias = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    if synced:
        with SyncedBatchNorm():
            out = F.batch_norm(rows, mean, var, weight, bias, True, 1.0)
    else:
        out = norm_rows(rows, mean, var, weight, bias, True, 1.0)
    torch.testing.assert_close(mean.double(), rows.double().mean(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(var.double(), rows.double().var(0), rtol=1e-2, atol=0)
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(bias.grad, torch.full((2,), 70_000.0))


@pytest.mark.parametrize("side", [8, 32, 256])
def test_means_within_the_padding_are_those_of_the_image(dtype: torch.dtype, side: int) -> None:
    mask = torch.zeros(1, 512, 512, dtype=torch.bool)
    mask[:, :side, :side] = True
    x = (torch.rand(1, 3, 512, 512) * 1e-2).to(dtype)
    with padding_stays_zero(mask):
        mean = x.mean((2, 3))
    assert mean.dtype == dtype
    assert_rounded(mean, x[:, :, :side, :side].double().mean((2, 3)))


def test_the_average_of_half_weights_moves(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 3).to(dtype)
    ema = ModelEMA(model, decay=0.9999, tau=0.0)
    before = model.weight.detach().double().clone()
    with torch.no_grad():
        model.weight += 1.0
    step = model.weight.detach().double() - before
    for _ in range(50):
        ema.update(model)
    moved = ema.model.weight.double() - before
    torch.testing.assert_close(moved, step * (1 - 0.9999**50), rtol=1e-3, atol=1e-6)
    again = ModelEMA(model)
    again.load_state_dict(ema.state_dict())
    assert torch.equal(again.model.weight, ema.model.weight)

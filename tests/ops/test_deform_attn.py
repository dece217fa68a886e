"""Checks deformable attention over kept sites against grid_sample, and both against a loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparse_dset.ops import dense_deform_attn, sparse_deform_attn
from sparse_dset.structures import SparseMap, Support

HEADS, DIM, POINTS = 2, 3, 2
GRIDS = ((8, 10), (4, 5))


@dataclass
class Case:
    """Inputs of both forms; ``kept`` and ``inside`` are masks per level."""

    value: Tensor
    background: Tensor
    locations: Tensor
    weights: Tensor
    extents: Tensor
    supports: list[Support]
    inside: list[Tensor]

    def maps(self, background: Tensor | None) -> list[Tensor]:
        """The dense maps that the rows stand for."""
        maps = []
        rows = self.value.split([support.num_sites for support in self.supports])
        for level, support in enumerate(self.supports):
            level_map = SparseMap(rows[level], support).to_dense()
            if background is not None:
                hole = (self.inside[level] & ~support.mask()).unsqueeze(1)
                level_map = torch.where(hole, background[level].view(1, -1, 1, 1), level_map)
            maps.append(level_map)
        return maps


def _case(
    batch: int, keep: float = 1.0, padded: bool = False, dtype: torch.dtype = torch.float64
) -> Case:
    sizes = torch.tensor(GRIDS[0]).float().expand(batch, 2)
    if padded:
        # Sizes in quarters of a cell, so that images end within cells.
        sizes = (torch.rand(batch, 2) * sizes * 4).ceil() / 4
    extents = torch.stack([sizes, sizes / 2], dim=1)
    inside, supports = [], []
    for level, (height, width) in enumerate(GRIDS):
        rows = torch.arange(height).view(1, -1, 1) < extents[:, level, 0].ceil().view(-1, 1, 1)
        columns = torch.arange(width).view(1, 1, -1) < extents[:, level, 1].ceil().view(-1, 1, 1)
        inside.append(rows & columns)
        kept = inside[-1] & (torch.rand(batch, height, width) < keep)
        supports.append(Support.from_mask(kept))
    shape = (batch, 5, HEADS, len(GRIDS), POINTS)
    options = {"dtype": dtype, "requires_grad": True}
    return Case(
        value=torch.randn(sum(s.num_sites for s in supports), HEADS * DIM, **options),
        background=torch.randn(len(GRIDS), HEADS * DIM, **options),
        locations=(torch.rand(*shape, 2, dtype=dtype) * 1.4 - 0.2).requires_grad_(),
        weights=torch.rand(*shape, **options),
        extents=extents,
        supports=supports,
        inside=inside,
    )


def _loop(case: Case, background: Tensor | None) -> Tensor:
    """Samples one by one, corner by corner."""
    maps = case.maps(background)
    locations = case.locations.detach()
    batch, queries = case.weights.shape[:2]
    out = torch.zeros(batch, queries, HEADS, DIM, dtype=case.value.dtype)
    for b, q, h, level, p in torch.cartesian_prod(*map(torch.arange, case.weights.shape)).tolist():
        height, width = (float(e) for e in case.extents[b, level])
        x = float(locations[b, q, h, level, p, 0]) * width - 0.5
        y = float(locations[b, q, h, level, p, 1]) * height - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if not (0 <= row < math.ceil(height) and 0 <= column < math.ceil(width)):
                    continue
                share = (1 - abs(y - row)) * (1 - abs(x - column)) * case.weights[b, q, h, level, p]
                out[b, q, h] += share * maps[level][b, h * DIM : (h + 1) * DIM, row, column]
    return out.flatten(2)


@pytest.mark.parametrize("keep", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("with_background", [True, False])
def test_equals_a_loop(with_background: bool, keep: float) -> None:
    case = _case(3, keep, padded=True)
    background = case.background if with_background else None
    expected = _loop(case, background)
    sampling = case.locations, case.weights, case.extents
    torch.testing.assert_close(
        sparse_deform_attn(case.value, case.supports, *sampling, background), expected
    )
    torch.testing.assert_close(dense_deform_attn(case.maps(background), *sampling), expected)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("batch", "keep"), [(3, 1.0), (3, 0.4), (65, 0.3), (80, 0.3), (2, 0.0)])
def test_sparse_equals_dense_with_gradients(batch: int, keep: float, padded: bool) -> None:
    case = _case(batch, keep, padded)
    sampling = case.locations, case.weights, case.extents
    inputs = [case.value, case.background, case.locations, case.weights]
    actual = sparse_deform_attn(case.value, case.supports, *sampling, case.background)
    expected = dense_deform_attn(case.maps(case.background), *sampling)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, grad),
        torch.autograd.grad(expected, inputs, grad, allow_unused=True, materialize_grads=True),
    )


def test_gradients() -> None:
    case = _case(2, 0.5, padded=True)
    assert torch.autograd.gradcheck(
        lambda v, loc, w, b: sparse_deform_attn(v, case.supports, loc, w, case.extents, b),
        (case.value, case.locations, case.weights, case.background),
    )


def test_center_of_a_cell_reads_its_row() -> None:
    support = Support.full(1, 4, 5)
    value = torch.randn(support.num_sites, 2)
    location = torch.tensor([(3 + 0.5) / 5, (1 + 0.5) / 4]).view(1, 1, 1, 1, 1, 2)
    out = sparse_deform_attn(
        value, [support], location, torch.ones(1, 1, 1, 1, 1), torch.tensor([[[4.0, 5.0]]])
    )
    torch.testing.assert_close(out[0, 0], value[1 * 5 + 3])


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_nothing_to_attend(batch: int, queries: int) -> None:
    case = _case(batch)
    sampling = case.locations[:, :queries], case.weights[:, :queries], case.extents
    out = sparse_deform_attn(case.value, case.supports, *sampling, case.background)
    assert out.shape == (batch, queries, HEADS * DIM)
    out.sum().backward()
    assert not case.value.grad.any()
    dense = dense_deform_attn(case.maps(case.background), *sampling)
    assert dense.shape == (batch, queries, HEADS * DIM)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    case = _case(3, 0.5, dtype=torch.float32)
    sampling = case.locations, case.weights, case.extents
    expected = sparse_deform_attn(case.value, case.supports, *sampling, case.background)
    half = [x.detach().to(dtype) for x in (case.value, case.background)]
    actual = sparse_deform_attn(half[0], case.supports, *sampling, half[1])
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, atol=2e-2, rtol=2e-2)
    maps = [level_map.to(dtype) for level_map in case.maps(case.background)]
    dense = dense_deform_attn(maps, *sampling)
    assert dense.dtype == dtype
    torch.testing.assert_close(dense.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(3, 6)}, r"value must be \[200, a multiple of 2 heads\]"),
        ({"supports": [Support.full(2, 8, 10)]}, "supports must be 2 supports of 2 images"),
        ({"locations": torch.zeros(2, 5, 2, 2, 2)}, r"locations must be \[B, Q, heads, L, P, 2\]"),
        ({"locations": torch.zeros(2, 5, 2, 2, 0, 2)}, "at least one head, level and point"),
        ({"weights": torch.zeros(2, 5, 2, 2, 3)}, r"weights must be \(2, 5, 2, 2, 2\)"),
        ({"extents": torch.zeros(2, 2)}, r"extents must be \[B, L, 2\] = \(2, 2, 2\)"),
        ({"background": torch.zeros(6)}, r"background must be \(2, 6\)"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    case = _case(2)
    names = ("value", "supports", "locations", "weights", "extents", "background")
    arguments = {name: getattr(case, name) for name in names}
    with pytest.raises(ValueError, match=message):
        sparse_deform_attn(**(arguments | change))


def test_wrong_maps_are_named() -> None:
    case = _case(2)
    with pytest.raises(ValueError, match="maps must be 2 maps"):
        dense_deform_attn([torch.zeros(2, 6, 8, 10)], case.locations, case.weights, case.extents)

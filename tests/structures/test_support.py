"""Checks the lookups of a support against searches site by site."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_dset.structures import Support, check_nested

Site = tuple[int, ...]


def _sites(support: Support) -> dict[Site, int]:
    return {tuple(site): row for row, site in enumerate(support.indices.tolist())}


def _windows(support: Support, source: Support, stride: int) -> list[list[int]]:
    rows = _sites(source)
    return [
        [
            rows.get((b, y * stride + dy, x * stride + dx), -1)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        for b, y, x in support.indices.tolist()
    ]


def _random(*shape: int, keep: float = 0.4) -> Tensor:
    return torch.rand(*shape) < keep


@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 1), (0, 4, 4), (3, 6, 1)])
def test_sites_are_sorted_and_looked_up(shape: tuple[int, int, int], keep: float) -> None:
    mask = _random(*shape, keep=keep)
    support = Support.from_mask(mask)
    assert support.shape == shape
    assert support.indices.dtype == torch.int32
    assert support.indices.is_contiguous()
    assert support.indices.tolist() == sorted(mask.nonzero().tolist())
    assert torch.equal(support.mask(), mask)
    assert support.counts().tolist() == [int(image.sum()) for image in mask]
    assert support.row_map().dtype == torch.int32
    for site, row in _sites(support).items():
        assert support.row_map()[site] == row
    assert int((support.row_map() >= 0).sum()) == support.num_sites
    flat = mask.flatten().nonzero().flatten()
    assert torch.equal(support.flat_index(), flat)


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 4), (0, 4, 4)])
@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_neighbors(keep: float, shape: tuple[int, int, int]) -> None:
    support = Support.from_mask(_random(*shape, keep=keep))
    table = support.neighbors()
    assert table.dtype == torch.int32
    assert table.shape == (support.num_sites, 9)
    assert table.tolist() == _windows(support, support, 1)
    assert support.neighbors() is table


@pytest.mark.parametrize(("height", "width"), [(8, 6), (7, 9), (1, 2)])
def test_strided_neighbors(height: int, width: int) -> None:
    finer = Support.from_mask(_random(2, height, width))
    support = Support.from_mask(_random(2, (height + 1) // 2, (width + 1) // 2, keep=0.7))
    table = support.strided_neighbors(finer)
    assert table.dtype == torch.int32
    assert table.shape == (support.num_sites, 9)
    assert table.tolist() == _windows(support, finer, 2)


def test_strided_neighbors_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="stride-2 convolution"):
        Support.full(1, 3, 4).strided_neighbors(Support.full(1, 8, 8))
    with pytest.raises(ValueError, match="stride-2 convolution"):
        Support.full(1, 4, 4).strided_neighbors(Support.full(2, 8, 8))


def test_parents() -> None:
    coarse_mask = _random(2, 3, 4, keep=0.5)
    fine_mask = coarse_mask.repeat_interleave(2, 1).repeat_interleave(2, 2) & _random(2, 6, 8)
    fine, coarse = Support.from_mask(fine_mask), Support.from_mask(coarse_mask)
    rows = _sites(coarse)
    expected = [rows[b, y // 2, x // 2] for b, y, x in fine.indices.tolist()]
    assert fine.parents(coarse).dtype == torch.int64
    assert fine.parents(coarse).tolist() == expected


def test_a_site_without_a_kept_parent_is_named() -> None:
    fine, coarse = torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 2, 2, dtype=torch.bool)
    coarse[0, 0, 0] = True
    fine[0, 1, 1] = fine[0, 3, 2] = True
    with pytest.raises(ValueError, match=r"\[0, 3, 2\] has no kept parent"):
        Support.from_mask(fine).parents(Support.from_mask(coarse))
    with pytest.raises(ValueError, match=r"\[0, 3, 2\] of level 0 has no kept parent at level 1"):
        check_nested([fine, coarse])


def test_nested_masks_pass() -> None:
    coarse = _random(2, 3, 4)
    fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :5, :7]
    check_nested([fine, coarse])


def test_indices_in_any_order_give_the_same_support() -> None:
    support = Support.from_mask(_random(2, 5, 7))
    order = torch.randperm(support.num_sites)
    shuffled = Support.from_indices(support.indices[order].long(), 2, 5, 7)
    assert shuffled.same_sites(support)
    # A transposed view of the right numbers is not contiguous in memory.
    turned = support.indices.t().contiguous().t()
    assert not turned.is_contiguous()
    assert Support.from_indices(turned, 2, 5, 7).indices.is_contiguous()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0, 3, 1], [0, 6, 1]], r"indices\[1\] = \[0, 6, 1\] is outside the grid"),
        ([[0, -1, 1]], r"indices\[0\]"),
        ([[2, 0, 0]], r"indices\[0\].*order of the columns"),
        ([[0, 3, 1], [0, 3, 1]], "1 of 2 indices repeat"),
        ([[3, 1]], r"\[N, 3\] of integers"),
        ([[0.0, 3.0, 1.0]], r"\[N, 3\] of integers"),
    ],
)
def test_wrong_indices_are_named(indices: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Support.from_indices(torch.tensor(indices), 2, 5, 9)


@pytest.mark.parametrize("mask", [torch.ones(2, 3, 4), torch.ones(3, 4, dtype=torch.bool)])
def test_wrong_masks_are_named(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[B, H, W\] of bool"):
        Support.from_mask(mask)


def test_same_sites() -> None:
    mask = _random(2, 5, 7)
    support = Support.from_mask(mask)
    assert support.same_sites(support)
    assert support.same_sites(Support.from_mask(mask.clone()))
    assert not support.same_sites(Support.from_mask(~mask))
    # The same sites on a larger grid are another support.
    assert not support.same_sites(Support(support.indices, 2, 6, 7))


def test_full() -> None:
    support = Support.full(2, 3, 4)
    assert support.num_sites == 24
    assert support.mask().all()


def test_shared_full_support_serves_inference_and_training():
    with torch.inference_mode():
        support = Support.full(3, 7, 11)
        tables = [support.neighbors(), support.row_map(), support.flat_index(), support.mask()]
    assert support is Support.full(3, 7, 11)
    assert not any(table.is_inference() for table in tables)


@pytest.mark.parametrize(
    "shape", [(2**31, 4, 0), (0, 2**31, 1), (1, 2**16, 2**16), (-1, 2, 2), (1, 2**40, 1)]
)
def test_grids_that_cannot_be_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="a grid must have"):
        Support.full(*shape)
    with pytest.raises(ValueError, match="a grid must have"):
        Support(torch.zeros(0, 3, dtype=torch.int32), *shape).row_map()


@pytest.mark.parametrize("size", [-1, 0, 2, 65, 2**31])
def test_windows_that_cannot_be_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"a window's size must be odd and in 1\.\.63"):
        Support.full(1, 3, 4).neighbors(size)


@pytest.mark.parametrize("site", [(0, 5, 1), (0, 1, 9), (2, 0, 0), (0, -1, 0), (-1, 0, 0)])
def test_sites_outside_the_grid_are_told_where_tables_are_made(site):
    support = Support(torch.tensor([site], dtype=torch.int32), 2, 4, 6)
    good, coarser = Support.full(2, 4, 6), Support.full(2, 2, 3)
    for make in (
        support.neighbors,
        lambda: support.parents(coarser),
        lambda: Support(support.indices, 2, 2, 3).strided_neighbors(good),
    ):
        with pytest.raises(ValueError, match="outside"):
            make()

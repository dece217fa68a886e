"""Checks sparse maps against the dense maps that they stand for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sparse_dset.structures import SparseMap, Support


def _support(*shape: int) -> Support:
    return Support.from_mask(torch.rand(*(shape or (2, 5, 7))) < 0.4)


def _map(support: Support, channels: int = 3) -> SparseMap:
    return SparseMap(torch.randn(support.num_sites, channels), support)


@pytest.mark.parametrize("shape", [(2, 5, 7), (0, 5, 7), (1, 1, 1)])
def test_round_trip(shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    support = _support(*shape)
    dense = torch.randn(batch, 3, height, width)
    sparse = SparseMap.from_dense(dense, support)
    for row, (b, y, x) in enumerate(support.indices.tolist()):
        assert torch.equal(sparse.features[row], dense[b, :, y, x])
    assert torch.equal(sparse.to_dense(), dense * support.mask().unsqueeze(1))


def test_round_trip_of_a_map_that_is_not_contiguous() -> None:
    support = _support()
    dense = torch.randn(2, 7, 5, 3).permute(0, 3, 2, 1)
    sparse = SparseMap.from_dense(dense, support)
    assert torch.equal(sparse.to_dense(), dense * support.mask().unsqueeze(1))


def test_gradients() -> None:
    support = _support(1, 3, 4)
    dense = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: (
            SparseMap.from_dense(x, support)
            .with_features(SparseMap.from_dense(x, support).features ** 2)
            .to_dense()
        ),
        dense,
    )


def test_sum_and_concatenation() -> None:
    support = _support()
    a, b = _map(support), _map(support)
    torch.testing.assert_close((a + b).to_dense(), a.to_dense() + b.to_dense())
    torch.testing.assert_close(a.cat(b).to_dense(), torch.cat([a.to_dense(), b.to_dense()], 1))
    # Equal sites make equal rows, whichever object holds them.
    twin = SparseMap(b.features, Support.from_mask(support.mask().clone()))
    torch.testing.assert_close((a + twin).features, (a + b).features)


def test_rows_of_other_sites_never_align() -> None:
    a = _map(Support.from_mask(torch.eye(4).bool().unsqueeze(0)))
    b = _map(Support.from_mask(torch.eye(4).bool().flip(0).unsqueeze(0)))
    assert a.features.shape == b.features.shape
    with pytest.raises(ValueError, match="same support"):
        a + b
    with pytest.raises(ValueError, match="same support"):
        a.cat(b)
    # Nor do the same sites in another order.
    c = SparseMap(b.features, Support(a.support.indices.flip(0).contiguous(), 1, 4, 4))
    with pytest.raises(ValueError, match="same support"):
        a + c


def test_wrong_shapes_are_named() -> None:
    support = _support()
    with pytest.raises(ValueError, match=rf"features must be \[{support.num_sites}, C\]"):
        SparseMap(torch.zeros(support.num_sites + 1, 3), support)
    with pytest.raises(ValueError, match="does not fit"):
        SparseMap.from_dense(torch.zeros(2, 3, 7, 5), support)


def test_is_frozen() -> None:
    sparse = _map(_support())
    with pytest.raises(dataclasses.FrozenInstanceError):
        sparse.features = sparse.features * 2  # type: ignore[misc]

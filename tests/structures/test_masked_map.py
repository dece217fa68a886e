from __future__ import annotations

import pytest
import torch

from sparse_dset.structures import MaskedMap, Support


def test_sites_outside_the_support_become_zero():
    mask = torch.rand(2, 3, 4) < 0.5
    tensor = torch.randn(2, 5, 3, 4)
    masked = MaskedMap.from_dense(tensor, Support.from_mask(mask))
    assert torch.equal(masked.to_dense(), tensor * mask[:, None])


def test_sum_and_concatenation():
    support = Support.from_mask(torch.rand(2, 3, 4) < 0.5)
    a, b = (MaskedMap.from_dense(torch.randn(2, 5, 3, 4), support) for _ in range(2))
    assert torch.equal((a + b).tensor, a.tensor + b.tensor)
    assert torch.equal(a.cat(b).tensor, torch.cat([a.tensor, b.tensor], 1))


def test_maps_that_do_not_fit_are_refused():
    a, b = (
        Support.from_mask(torch.eye(3, dtype=torch.bool)[None] ^ flip) for flip in (False, True)
    )
    tensor = torch.randn(1, 2, 3, 3)
    with pytest.raises(ValueError, match="same support"):
        MaskedMap.from_dense(tensor, a) + MaskedMap.from_dense(tensor, b)
    with pytest.raises(ValueError, match="same support"):
        MaskedMap.from_dense(tensor, a).cat(MaskedMap.from_dense(tensor, b))
    with pytest.raises(ValueError, match="does not fit"):
        MaskedMap.from_dense(torch.randn(1, 2, 3, 4), a)

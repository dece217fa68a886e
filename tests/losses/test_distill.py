from __future__ import annotations

import torch

from sparse_dset.losses.distill import distillation_loss
from sparse_dset.structures import SparseMap, Support


def test_the_distance_does_not_grow_with_the_features() -> None:
    teacher = [torch.randn(2, 8, 4, 6)]
    mask = torch.rand(2, 4, 6) < 0.5
    own = [SparseMap.from_dense(torch.randn(2, 8, 4, 6), Support.from_mask(mask))]
    larger = [m.with_features(1e3 * m.features) for m in own]
    small, large = distillation_loss(own, teacher), distillation_loss(larger, teacher)
    torch.testing.assert_close(small, large)
    assert 0 < float(small) < 2


def test_it_goes_from_nothing_to_two() -> None:
    teacher = [torch.randn(2, 8, 4, 6)]
    support = Support.from_mask(torch.rand(2, 4, 6) < 0.5)
    same = [SparseMap.from_dense(teacher[0], support)]
    torch.testing.assert_close(distillation_loss(same, teacher), torch.tensor(0.0))
    opposite = [SparseMap.from_dense(-teacher[0], support)]
    torch.testing.assert_close(distillation_loss(opposite, teacher), torch.tensor(2.0))


def test_no_site_is_no_distance() -> None:
    teacher = [torch.randn(2, 8, 4, 6)]
    nothing = Support.from_mask(torch.zeros(2, 4, 6, dtype=torch.bool))
    assert float(distillation_loss([SparseMap.from_dense(teacher[0], nothing)], teacher)) == 0.0

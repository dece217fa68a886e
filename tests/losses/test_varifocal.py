from __future__ import annotations

import torch
from torch.testing import assert_close

from sparse_dset.losses.varifocal import varifocal_loss


def test_equals_the_formula() -> None:
    logits = torch.randn(100, dtype=torch.float64)
    positive = torch.rand(100) < 0.3
    score = torch.rand(100) * positive
    p, q = logits.sigmoid(), score.double()
    entropy = -(q * p.log() + (1 - q) * (1 - p).log())
    expected = torch.where(positive, q * entropy, 0.75 * p**2 * entropy)
    assert_close(varifocal_loss(logits, score, positive, 0.75, 2.0), expected.float())


def test_large_half_precision_logits_stay_finite() -> None:
    logits = torch.tensor([3e4, -3e4, 3e4, -3e4], dtype=torch.float16, requires_grad=True)
    score = torch.tensor([0.0, 0.0, 0.9, 0.9])
    loss = varifocal_loss(logits, score, score > 0, 0.75, 2.0)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()

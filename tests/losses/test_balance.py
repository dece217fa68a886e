from __future__ import annotations

import pytest
import torch

from sparse_dset.losses.balance import load_balance_loss


def test_equals_a_reference_that_loops() -> None:
    probs = torch.randn(50, 4).softmax(dim=1)
    experts = probs.topk(2, dim=1).indices
    expected = 0.0
    for expert in range(4):
        share = float((experts == expert).sum()) / experts.numel()
        expected += 4 * share * float(probs[:, expert].mean())
    assert float(load_balance_loss(probs, experts, 4)) == pytest.approx(expected, rel=1e-5)


def test_is_one_when_balanced_and_largest_when_collapsed() -> None:
    balanced = load_balance_loss(torch.full((8, 4), 0.25), torch.arange(8)[:, None] % 4, 4)
    assert float(balanced) == pytest.approx(1.0)
    one_hot = torch.eye(4)[torch.zeros(8, dtype=torch.int64)]
    assert float(load_balance_loss(one_hot, one_hot.argmax(1, True), 4)) == pytest.approx(4.0)


def test_gradient_takes_probability_from_the_busy_expert() -> None:
    logits = torch.zeros(6, 3, requires_grad=True)
    experts = torch.zeros(6, 1, dtype=torch.int64)
    load_balance_loss(logits.softmax(dim=1), experts, 3).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1:] < 0).all()


def test_no_tokens() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = load_balance_loss(logits.softmax(dim=1), torch.zeros(0, 2, dtype=torch.int64), 4)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None


def test_half_precision_is_computed_in_float32() -> None:
    probs = torch.full((200_000, 2), 0.5, dtype=torch.float16)
    loss = load_balance_loss(probs, torch.zeros(200_000, 1, dtype=torch.int64), 2)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(1.0)

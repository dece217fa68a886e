from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_dset.models.moe import FeedForward, MoEConfig, MoEFeedForward

WIDTH, HIDDEN, EXPERTS = 8, 12, 4


def _layer(top_k=2, experts=EXPERTS):
    layer = MoEFeedForward(WIDTH, HIDDEN, experts, top_k, F.gelu).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _tokens(count=20):
    return torch.randn(count, WIDTH, dtype=torch.float64)


def _expert(layer, index, token):
    experts = layer.experts
    hidden = F.gelu(experts.weight1[index] @ token + experts.bias1[index])
    return experts.weight2[index] @ hidden + experts.bias2[index]


def _by_hand(layer, tokens, logits):
    rows = []
    for token, row in zip(tokens, logits, strict=True):
        probs = row.float().softmax(0)
        chosen = probs.argsort(descending=True)[: layer.top_k]
        gates = probs[chosen] / probs[chosen].sum()
        rows.append(sum(g * _expert(layer, e, token) for g, e in zip(gates, chosen, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_it_equals_a_loop_over_tokens(top_k):
    layer, tokens = _layer(top_k), _tokens()
    out, stats = layer(tokens)
    torch.testing.assert_close(
        out, _by_hand(layer, tokens, layer.router(tokens)), rtol=1e-9, atol=1e-9
    )
    assert stats.probs.shape == (20, EXPERTS)
    assert stats.experts.shape == (20, top_k)
    assert all(len(set(row)) == top_k for row in stats.experts.tolist())


def test_gradients_equal_those_of_the_loop():
    layer, tokens = _layer(), _tokens()
    weight = torch.randn(20, WIDTH, dtype=torch.float64)
    (layer(tokens)[0] * weight).sum().backward()
    ours = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    (_by_hand(layer, tokens, layer.router(tokens)) * weight).sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_learns_from_what_follows(top_k):
    layer = MoEFeedForward(WIDTH, HIDDEN, EXPERTS, top_k, F.gelu)
    out, _ = layer(torch.randn(30, WIDTH))
    (out * torch.randn_like(out)).sum().backward()
    assert layer.router.weight.grad.norm() > 1e-2


def test_patches_are_routed_by_their_mean_logit():
    layer, tokens = _layer(), _tokens()
    group = torch.randint(5, (20,)) * 3  # some numbers stay unused
    logits = layer.router(tokens)
    means = torch.stack([logits[group == g].mean(0) for g in group])
    out, stats = layer(tokens, group)
    torch.testing.assert_close(out, _by_hand(layer, tokens, means), rtol=1e-5, atol=1e-5)
    for g in group.unique():
        assert len(stats.experts[group == g].unique(dim=0)) == 1


def test_all_tokens_may_choose_one_expert():
    layer, tokens = _layer(top_k=1), _tokens()
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    out, _ = layer(tokens)
    expected = torch.stack([_expert(layer, 2, token) for token in tokens])
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    for name, parameter in layer.experts.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad[2].any(), name
        assert not parameter.grad[[0, 1, 3]].any(), name


@pytest.mark.parametrize("group", [None, torch.zeros(0, dtype=torch.int64)])
def test_no_token_gives_zero_gradients(group):
    layer = _layer()
    out, stats = layer(_tokens(0), group)
    assert out.shape == (0, WIDTH)
    assert stats.probs.shape == (0, EXPERTS)
    (out.sum() + stats.probs.sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("top_k", [1, 3])
def test_copies_of_a_dense_layer_equal_it(top_k):
    dense = FeedForward(WIDTH, HIDDEN, F.gelu).double()
    sparse = FeedForward(WIDTH, HIDDEN, F.gelu, MoEConfig(EXPERTS, top_k)).double()
    with torch.no_grad():
        sparse.moe.experts.weight1.copy_(dense.linear1.weight)
        sparse.moe.experts.bias1.copy_(dense.linear1.bias)
        sparse.moe.experts.weight2.copy_(dense.linear2.weight)
        sparse.moe.experts.bias2.copy_(dense.linear2.bias)
    x, mask = torch.randn(2, 5, WIDTH, dtype=torch.float64), torch.rand(2, 5) < 0.5
    for real in (None, mask):
        torch.testing.assert_close(
            sparse.feed_forward(x, real)[0], dense.feed_forward(x, real)[0], rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("moe", [None, MoEConfig(EXPERTS, 2)])
def test_padding_is_left_out_and_comes_back_as_zero(moe):
    layer = FeedForward(WIDTH, HIDDEN, F.gelu, moe).double()
    x, mask = torch.randn(2, 5, WIDTH, dtype=torch.float64), torch.rand(2, 5) < 0.5
    out, stats = layer.feed_forward(x, mask)
    assert not out[~mask].any()
    whole, _ = layer.feed_forward(x, None)
    torch.testing.assert_close(out[mask], whole[mask])
    assert stats is None if moe is None else len(stats.probs) == int(mask.sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_routes_in_float32(dtype):
    layer = MoEFeedForward(WIDTH, HIDDEN, EXPERTS, EXPERTS, F.gelu)
    tokens = torch.randn(20, WIDTH)
    full, _ = layer(tokens)
    with torch.autocast("cpu", dtype):
        half, stats = layer(tokens)
        half.float().sum().backward()
    assert stats.probs.dtype == torch.float32
    torch.testing.assert_close(half.float(), full, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize("top_k", [0, EXPERTS + 1])
def test_top_k_must_fit(top_k):
    with pytest.raises(ValueError, match=r"must be in 1\.\.num_experts = 4"):
        MoEFeedForward(WIDTH, HIDDEN, EXPERTS, top_k, F.gelu)

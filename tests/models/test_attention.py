from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_dset.models.attention import SelfAttention


def _pair(width=16, heads=4):
    ours, theirs = (
        SelfAttention(width, heads),
        nn.MultiheadAttention(width, heads, batch_first=True),
    )
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours.load_state_dict(theirs.state_dict())
    return ours.double(), theirs.double()


def test_it_equals_torchs_attention():
    ours, theirs = _pair()
    x, position = torch.randn(2, 3, 7, 16, dtype=torch.float64)
    expected, _ = theirs(x + position, x + position, x)
    torch.testing.assert_close(ours(x, position), expected)


def test_masked_keys_are_not_attended_to():
    ours, theirs = _pair()
    x, position = torch.randn(2, 3, 7, 16, dtype=torch.float64)
    mask = torch.rand(3, 7) < 0.6
    mask[:, 0] = True
    expected, _ = theirs(x + position, x + position, x, key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, position, mask.unsqueeze(1)), expected)
    pairs = torch.rand(7, 7) < 0.6
    pairs |= torch.eye(7, dtype=torch.bool)
    expected, _ = theirs(x + position, x + position, x, attn_mask=~pairs)
    torch.testing.assert_close(ours(x, position, pairs.unsqueeze(0)), expected)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 10 is not a multiple of num_heads 4"):
        SelfAttention(10, 4)

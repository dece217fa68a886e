"""Multi-head self-attention with the parameter names of ``nn.MultiheadAttention``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.checks import check_number


class SelfAttention(nn.Module):
    """Self-attention whose positional part enters queries and keys only."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        check_number("num_heads", num_heads, at_least=1, whole=True)
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, may_attend: Tensor | None = None) -> Tensor:
        """Attends.

        Args:
            x: ``[B, T, C]``.
            position: added to queries and keys, broadcastable to x.
            may_attend: bool, broadcastable to ``[B, T, T]``; every query needs at least one key.
        """
        batch, length, width = x.shape
        with_position = x + position
        query_key = F.linear(
            with_position, self.in_proj_weight[: 2 * width], self.in_proj_bias[: 2 * width]
        )
        value = F.linear(x, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        query, key, value = (
            part.view(batch, length, self.num_heads, -1).transpose(1, 2)
            for part in (*query_key.chunk(2, dim=-1), value)
        )
        mask = None if may_attend is None else may_attend.unsqueeze(-3)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

"""Mixture-of-experts feed-forward layers: route, dispatch, compute, combine.

Shazeer et al., "Outrageously Large Neural Networks", 2017; Fedus et al., "Switch
Transformers", 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.checks import check_number
from sparse_dset.models.layers import within_half
from sparse_dset.ops.segment import segment_mean, segment_sum, take
from sparse_dset.structures.outputs import RouterStats


class Experts(nn.Module):
    """Feed-forward networks side by side; an expert without tokens gets zero gradients."""

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.bias1 = nn.Parameter(torch.zeros(num_experts, hidden))
        self.weight2 = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.bias2 = nn.Parameter(torch.zeros(num_experts, width))
        for weight in (self.weight1, self.weight2):
            for expert in weight:
                nn.init.xavier_uniform_(expert)

    def forward(
        self, rows: Tensor, counts: list[int], activation: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Sends each run of rows through its expert.

        Args:
            rows: ``[N, C]``, sorted by expert.
            counts: rows per expert.
        """
        outputs = [
            F.linear(activation(F.linear(part, weight1, bias1)), weight2, bias2)
            for part, weight1, bias1, weight2, bias2 in zip(
                rows.split(counts), self.weight1, self.bias1, self.weight2, self.bias2, strict=True
            )
        ]
        return torch.cat(outputs)


class MoEFeedForward(nn.Module):
    """A feed-forward layer of which each token uses ``top_k`` of ``num_experts`` networks.

    The gates of the chosen experts are renormalised to sum to 1, so a layer whose experts are
    copies of one dense layer gives that layer's output.

    Args:
        width, hidden: channels of the tokens and of each expert.
        num_experts, top_k: how many experts there are and how many a token uses.
        activation: between the two linear layers.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        num_experts: int,
        top_k: int,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k = {top_k} must be in 1..num_experts = {num_experts}")
        self.router = nn.Linear(width, num_experts)
        self.experts = Experts(num_experts, width, hidden)
        self.top_k = top_k
        self.activation = activation

    def forward(self, tokens: Tensor, group: Tensor | None = None) -> tuple[Tensor, RouterStats]:
        """Routes and transforms tokens.

        Args:
            tokens: ``[T, C]``.
            group: int64 ``[T]`` or None; tokens of one group (a patch) are routed together, by the
                mean of their router logits.

        Returns:
            The transformed tokens ``[T, C]`` and what the router decided.
        """
        logits = self.router(tokens).float()
        if group is not None and len(group):
            logits = segment_mean(logits, group, int(group.max()) + 1)[group]
        probs = logits.softmax(dim=-1)
        gates, experts = probs.topk(self.top_k, dim=-1)
        # Of one expert alone the gate is 1 whatever the router says; it keeps the gradient of the
        # log-probability, from which the router learns what the task needs.
        whole = gates.detach() if self.top_k == 1 else gates
        gates = gates / whole.sum(dim=-1, keepdim=True)

        order = experts.flatten().argsort(stable=True)
        token_of = order // self.top_k
        counts = torch.bincount(experts.flatten(), minlength=probs.shape[1]).tolist()
        outputs = self.experts(take(tokens, token_of), counts, self.activation)
        outputs = outputs * gates.flatten()[order, None].to(outputs.dtype)
        combined = segment_sum(outputs, token_of, len(tokens))
        return combined, RouterStats(probs, experts)


@dataclass(frozen=True)
class MoEConfig:
    """How a transformer layer's feed-forward part is split into experts.

    Attributes:
        num_experts, top_k: how many experts there are and how many a token uses.
        patch_size: side, in cells, of the patches that the encoder routes together; 1 routes
            every token by itself.
    """

    num_experts: int
    top_k: int
    patch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("num_experts", "top_k", "patch_size"):
            check_number(f"moe.{name}", getattr(self, name), at_least=1, whole=True)


class FeedForward(nn.Module):
    """Base of transformer layers: the feed-forward part, dense or with experts.

    Dense, its parameters have RT-DETR's names in the layer itself: ``linear1``, ``linear2``.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor],
        moe: MoEConfig | None = None,
    ) -> None:
        super().__init__()
        self.ffn_activation = activation
        if moe is None:
            self.linear1 = nn.Linear(width, hidden)
            self.linear2 = nn.Linear(hidden, width)
            self.moe = None
        else:
            self.moe = MoEFeedForward(width, hidden, moe.num_experts, moe.top_k, activation)

    def feed_forward(
        self, x: Tensor, mask: Tensor | None, group: Tensor | None = None
    ) -> tuple[Tensor, RouterStats | None]:
        """Transforms the real tokens of a padded batch.

        Args:
            x: ``[B, T, C]``.
            mask: bool ``[B, T]``, True = real; None: all are.
            group: int64 ``[B, T]``, tokens that are routed together.
        """
        rows = x.flatten(0, 1) if mask is None else x[mask]
        if self.moe is None:
            rows, stats = self.linear2(self.ffn_activation(self.linear1(rows))), None
        else:
            if group is not None:
                group = group.flatten() if mask is None else group[mask]
            rows, stats = self.moe(rows, group)
        rows = within_half(rows)
        if mask is None:
            return rows.view(x.shape), stats
        return x.new_zeros(x.shape, dtype=rows.dtype).masked_scatter(
            mask.unsqueeze(-1), rows
        ), stats

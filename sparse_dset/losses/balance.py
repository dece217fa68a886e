"""The loss that keeps the experts of a mixture equally busy."""

from __future__ import annotations

import torch
from torch import Tensor


def load_balance_loss(probs: Tensor, experts: Tensor, num_experts: int) -> Tensor:
    """Load-balance loss of the Switch Transformer (Fedus et al., JMLR 2022), unweighted.

    Args:
        probs: the router's softmax ``[T, E]``; T may be 0.
        experts: int64 ``[T, k]``, the chosen experts of each token.
        num_experts: E.

    Returns:
        float32 scalar: E x the sum over experts of (share of the choices) x (mean probability).
        1 when all are equally busy; 0, connected to the graph, without tokens.
    """
    counts = torch.bincount(experts.flatten(), minlength=num_experts).float()
    share = counts / max(experts.numel(), 1)
    mean_probability = probs.float().sum(dim=0) / max(len(probs), 1)
    return num_experts * (share * mean_probability).sum()

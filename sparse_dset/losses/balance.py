"""The loss that keeps the experts of a mixture equally busy."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-6  # of no tokens at all the loss is 0


def router_counts(experts: Tensor, num_experts: int) -> Tensor:
    """Returns how often each expert was chosen, and by how many tokens: float32 ``[E + 1]``."""
    chosen = torch.bincount(experts.flatten(), minlength=num_experts)
    return torch.cat([chosen, chosen.new_tensor([len(experts)])]).float()


def load_balance_loss(
    probs: Tensor, experts: Tensor, num_experts: int, counts: Tensor | None = None
) -> Tensor:
    """Load-balance loss of the Switch Transformer (Fedus et al., JMLR 2022), unweighted.

    Args:
        probs: the router's softmax ``[T, E]``; T may be 0.
        experts: int64 ``[T, k]``, the chosen experts of each token.
        num_experts: E.
        counts: float32 ``[E + 1]``, the ``router_counts`` of all the tokens that the loss is a mean
            over, of which these may be a part; None: these are all of them.

    Returns:
        float32 scalar: E x the sum over experts of (share of the choices) x (mean probability).
        1 when all are equally busy; 0, connected to the graph, without tokens. The losses of the
        parts of ``counts`` add up to that of the whole.
    """
    counts = router_counts(experts, num_experts) if counts is None else counts
    share = counts[:-1] / counts[:-1].sum().clamp(min=_EPS)
    mean_probability = probs.float().sum(dim=0) / counts[-1].clamp(min=_EPS)
    return num_experts * (share * mean_probability).sum()

"""The varifocal loss, shared by every classification with soft targets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def varifocal_loss(
    logits: Tensor, score: Tensor, positive: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Varifocal loss (Zhang et al., CVPR 2021), elementwise.

    A positive is weighted by its soft target, a negative by ``alpha * p ** gamma``, where p is the
    predicted probability: easy negatives fade, positives never do.

    Args:
        logits: any shape, any floating dtype.
        score: soft targets in [0, 1], 0 where negative.
        positive: the share that counts as positive, in [0, 1] or bool.
        alpha, gamma: weight and exponent of the negatives.

    Returns:
        float32, the shape of ``logits``.
    """
    logits, score, positive = logits.float(), score.float(), positive.float()
    weight = negative_weight(logits, positive, alpha, gamma) + score
    return weight * F.binary_cross_entropy_with_logits(logits, score, reduction="none")


def negative_weight(logits: Tensor, positive: Tensor, alpha: float, gamma: float) -> Tensor:
    """The weight of what is negative; see ``varifocal_loss``. Logits are float32."""
    return alpha * logits.detach().sigmoid().pow(gamma) * (1 - positive)

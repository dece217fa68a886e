"""The activations that a convolution can end with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "relu", "silu")


def check_activation(activation: str) -> str:
    """Returns the name if it is known.

    Raises:
        ValueError: it is not.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}"
        )
    return activation


def activate(x: Tensor, activation: str) -> Tensor:
    """Applies one of ``ACTIVATIONS``; all of them map 0 to 0."""
    if activation == "relu":
        return F.relu(x)
    return F.silu(x) if activation == "silu" else x

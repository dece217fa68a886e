"""The activations that a convolution can end with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "silu")


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


def activate(x: Tensor, activation: str, inplace: bool = False) -> Tensor:
    """Applies one of ``ACTIVATIONS``; all of them map 0 to 0.

    Args:
        inplace: the input is a new tensor that nobody else needs.
    """
    if activation == "relu":
        return F.relu(x, inplace)
    if activation == "relu6":
        return F.relu6(x, inplace)
    return F.silu(x, inplace) if activation == "silu" else x

"""The inference form of a network."""

from __future__ import annotations

import torch
from torch import nn

from sparse_dset.models.layers import Fusable


@torch.inference_mode(False)
@torch.no_grad()
def fuse(module: nn.Module) -> None:
    """Replaces, in place and at any depth, what has an inference form by it."""
    for name, child in module.named_children():
        if isinstance(child, Fusable):
            child = child.fused()
            setattr(module, name, child)
        fuse(child)

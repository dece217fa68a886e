"""What the detector expects of a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channels_last(images: Tensor) -> Tensor:
    """Lays images out in the format in which the rows of a map need no transposition."""
    return images.contiguous(memory_format=torch.channels_last)


class Backbone(nn.Module):
    """Maps images ``[B, 3, H, W]`` in [0, 1] to three maps at strides 8, 16 and 32.

    Attributes:
        out_channels: their channels, finest first.
    """

    out_channels: list[int]

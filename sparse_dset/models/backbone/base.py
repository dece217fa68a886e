"""What the detector expects of a backbone."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """Maps images ``[B, 3, H, W]`` in [0, 1] to three maps at strides 8, 16 and 32.

    Attributes:
        out_channels: their channels, finest first.
    """

    out_channels: list[int]

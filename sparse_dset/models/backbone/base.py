"""What the detector expects of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_dset.models.layers import FeatureMap
from sparse_dset.structures import Support


class Backbone(nn.Module):
    """Maps images to four maps, at strides 4, 8, 16 and 32.

    It can be run in two parts, the later one on kept sites only.

    Attributes:
        channels: of the four maps, finest first.
    """

    channels: list[int]

    @property
    def out_channels(self) -> list[int]:
        """Channels of the maps at strides 8, 16 and 32, which the encoder reads."""
        return self.channels[1:]

    def forward(
        self,
        x: FeatureMap,
        levels: range = range(4),
        onto: Sequence[Support] = (),
    ) -> list[FeatureMap]:
        """Computes some of the four maps.

        Args:
            x: images ``[B, 3, H, W]`` in [0, 1] where ``levels`` starts at 0, else the map of the
                level before.
            levels: which of them.
            onto: the sites of each of ``levels``; nothing for tensors.
        """
        raise NotImplementedError


def channels_last(images: Tensor) -> Tensor:
    """Lays images out in the format in which the rows of a map need no transposition."""
    return images.contiguous(memory_format=torch.channels_last)

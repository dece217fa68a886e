"""What the detector expects of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_dset.models.backbone.padding import run_apart, run_masked, shows_padding
from sparse_dset.structures import Support
from sparse_dset.structures.geometry import Geometry
from sparse_dset.structures.maps import FeatureMap


class Backbone(nn.Module):
    """Maps images to four maps, at strides 4, 8, 16 and 32.

    It can be run in two parts, the later one on kept sites only.

    Attributes:
        channels: of the four maps, finest first.
    """

    channels: list[int]

    def __init__(self) -> None:
        super().__init__()
        self._padding_seen: list[bool] = []  # one answer, which twins of the module share

    @property
    def out_channels(self) -> list[int]:
        """Channels of the maps at strides 8, 16 and 32, which the encoder reads."""
        return self.channels[1:]

    @property
    def sees_padding(self) -> bool:
        """Whether padding changes what is computed inside an image, although it is kept zero.

        Found out once, by running a copy on small images, see ``padding.shows_padding``.
        """
        if not self._padding_seen:
            self._padding_seen.append(shows_padding(self))
        return self._padding_seen[0]

    def extract(self, x: Tensor, levels: range, geometry: Geometry) -> list[Tensor]:
        """Computes some of the four maps of a batch, zero in the padding.

        What is computed for an image does not depend on its padding. A backbone that would see it
        (attention, statistics of the whole map) runs on each image at its own size, see
        ``padding.run_apart``.

        Args:
            x: ``[B, C, H, W]``, see ``forward``.
            levels: which of the maps.
            geometry: where each image ends.
        """
        if not geometry.padded:
            return self(x, levels)
        run = run_apart if self.sees_padding else run_masked
        return run(self, x, levels, geometry)

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

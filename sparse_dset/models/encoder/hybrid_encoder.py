"""RT-DETR's hybrid encoder: projection, attention within the coarsest level, cross-scale fusion."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparse_dset.checks import check_number
from sparse_dset.models.encoder.aifi import Aifi
from sparse_dset.models.layers import MOST_LAYERS, ConvNormLayer
from sparse_dset.models.moe import MoEConfig
from sparse_dset.models.neck.fpn_pan import FpnPan
from sparse_dset.structures.geometry import Geometry
from sparse_dset.structures.maps import FeatureMap
from sparse_dset.structures.outputs import RouterStats


class HybridEncoder(FpnPan):
    """Encoder and neck under RT-DETR's common name prefix.

    Args:
        in_channels: channels of the backbone's levels, finest first.
        width: channels of every level from here on.
        num_heads, ffn_dim, num_layers: of the attention within the coarsest level.
        blocks, expansion: of the neck, see ``FpnPan``.
        moe: experts of the feed-forward part, None for a dense one.
        position: see ``Aifi``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        num_layers: int = 1,
        blocks: int = 3,
        expansion: float = 1.0,
        moe: MoEConfig | None = None,
        position: str = "row_major",
    ) -> None:
        check_number(
            "model.encoder.num_layers", num_layers, at_least=0, at_most=MOST_LAYERS, whole=True
        )
        check_number("model.encoder.blocks", blocks, at_least=0, at_most=MOST_LAYERS, whole=True)
        check_number("model.encoder.expansion", expansion, above=0)
        super().__init__(width, len(in_channels), blocks, expansion)
        self.input_proj = nn.ModuleList(ConvNormLayer(c, width, 1) for c in in_channels)
        self.encoder = nn.ModuleList([Aifi(width, num_heads, ffn_dim, num_layers, moe, position)])

    def encode(
        self, maps: Sequence[FeatureMap], geometry: Geometry
    ) -> tuple[list[FeatureMap], list[RouterStats]]:
        """Projects every level to ``width`` and attends within the coarsest.

        ``fuse`` (of ``FpnPan``) comes after it.
        """
        projected = [proj(x) for proj, x in zip(self.input_proj, maps, strict=True)]
        coarsest, stats = self.encoder[0](projected[-1], geometry.cells()[:, -1])
        return [*projected[:-1], coarsest], stats

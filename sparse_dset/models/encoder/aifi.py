"""Attention within the coarsest level (AIFI of RT-DETR), on the tokens that the level holds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.models.attention import SelfAttention
from sparse_dset.models.moe import FeedForward, MoEConfig
from sparse_dset.structures import MaskedMap, SparseMap
from sparse_dset.structures.maps import FeatureMap
from sparse_dset.structures.outputs import RouterStats
from sparse_dset.structures.ragged import Ragged


def sincos_position(y: Tensor, x: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Returns the sine-cosine embedding of cell coordinates.

    Args:
        y, x: ``[...]`` cell coordinates.
        width: channels, a multiple of 4.

    Returns:
        ``[..., width]``: sin(y), cos(y), sin(x), cos(x), a quarter of the channels each.
    """
    if width % 4:
        raise ValueError(f"the encoder's width must be a multiple of 4, got {width}")
    omega = temperature ** -(
        torch.arange(width // 4, dtype=torch.float64, device=y.device) * 4 / width
    )
    y_phase, x_phase = y.double()[..., None] * omega, x.double()[..., None] * omega
    parts = [y_phase.sin(), y_phase.cos(), x_phase.sin(), x_phase.cos()]
    return torch.cat(parts, dim=-1)


def column_major(y: Tensor, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Renumbers cells as the released RT-DETR does.

    It lays the positions of an H x W map out column by column and reads them row by row. On square
    maps that only exchanges the axes' names; on others cell t (counted by rows) gets the position
    (t // H, t % H).

    Args:
        y, x: int64 ``[B, T]``.
        sizes: int64 ``[B, 2]``, each image's (height, width) in cells.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    index = y * width + x
    return index // height, index % height


class EncoderLayer(FeedForward):
    """A post-norm transformer encoder layer; the feed-forward part may have experts."""

    def __init__(
        self, width: int, num_heads: int, hidden: int, moe: MoEConfig | None = None
    ) -> None:
        super().__init__(width, hidden, F.gelu, moe)
        self.self_attn = SelfAttention(width, num_heads)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, position: Tensor, mask: Tensor | None, group: Tensor | None
    ) -> tuple[Tensor, RouterStats | None]:
        """Transforms tokens ``[B, T, C]``; ``mask [B, T]`` tells the real ones (None: all)."""
        may_attend = None if mask is None else _some_key(mask).unsqueeze(1)
        x = self.norm1(x + self.self_attn(x, position, may_attend))
        y, stats = self.feed_forward(x, mask, group)
        return self.norm2(x + y), stats


class Aifi(nn.Module):
    """Encoder layers over the tokens of one level, of whatever kind its map is.

    Args:
        position: "row_major", or "released" for the layout of the released RT-DETR (see
            ``column_major``), which its checkpoints need on images that are not square.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        num_layers: int = 1,
        moe: MoEConfig | None = None,
        position: str = "row_major",
    ) -> None:
        super().__init__()
        if position not in ("row_major", "released"):
            raise ValueError(f'position must be "row_major" or "released", got {position!r}')
        self.position = position
        self.patch_size = 1 if moe is None else moe.patch_size
        self.layers = nn.ModuleList(
            EncoderLayer(width, num_heads, hidden, moe) for _ in range(num_layers)
        )

    def forward(self, x: FeatureMap, sizes: Tensor) -> tuple[FeatureMap, list[RouterStats]]:
        """Attends within the level.

        Args:
            x: the level's map.
            sizes: int64 ``[B, 2]``, each image's (height, width) in cells, without padding.
        """
        if isinstance(x, SparseMap):
            batch, *cell = x.support.indices.long().unbind(1)
            ragged = Ragged.from_batch_index(batch, x.support.batch_size)
            tokens, stats = self._run(
                ragged.pad(x.features),
                ragged.pad(cell[0]),
                ragged.pad(cell[1]),
                ragged.mask(),
                sizes,
            )
            return x.with_features(ragged.unpad(tokens)), stats

        tensor = x.tensor if isinstance(x, MaskedMap) else x
        batch_size, _, height, width = tensor.shape
        cell_index = torch.arange(height * width, device=tensor.device).expand(batch_size, -1)
        y, column = cell_index // width, cell_index % width
        mask = x.support.mask().flatten(1) if isinstance(x, MaskedMap) else None
        tokens, stats = self._run(tensor.flatten(2).transpose(1, 2), y, column, mask, sizes)
        # A copy, for strides that convolutions know as channels last also in a batch of one.
        tensor = tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        tensor = tensor.clone(memory_format=torch.channels_last)
        return MaskedMap.from_dense(tensor, x.support) if isinstance(
            x, MaskedMap
        ) else tensor, stats

    def _run(
        self, tokens: Tensor, y: Tensor, x: Tensor, mask: Tensor | None, sizes: Tensor
    ) -> tuple[Tensor, list[RouterStats]]:
        cells = (y, x) if self.position == "row_major" else column_major(y, x, sizes)
        position = sincos_position(*cells, tokens.shape[-1]).to(tokens.dtype)
        group = None if self.patch_size == 1 else _patch_index(y, x, self.patch_size)
        collected = []
        for layer in self.layers:
            tokens, stats = layer(tokens, position, mask, group)
            collected += [stats] if stats is not None else []
        return tokens, collected


def _patch_index(y: Tensor, x: Tensor, patch_size: int) -> Tensor:
    """Numbers the patches of a batch: int64 ``[B, T]``."""
    row, column = y // patch_size, x // patch_size
    rows, columns = int(row.max()) + 1, int(column.max()) + 1
    image = torch.arange(len(y), device=y.device)[:, None]
    return (image * rows + row) * columns + column


def _some_key(mask: Tensor) -> Tensor:
    """Lets an image without any token attend to its padding, so that nothing becomes NaN."""
    return mask | ~mask.any(dim=1, keepdim=True)

"""What the decoder reads: the rows of all levels, and how to sample between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_dset.models.layers import FeatureMap
from sparse_dset.ops import dense_deform_attn, sparse_deform_attn
from sparse_dset.structures import MaskedMap, SparseMap, Support
from sparse_dset.structures.ragged import Ragged


@dataclass(frozen=True)
class Memory(ABC):
    """Rows of all levels and images.

    Attributes:
        rows: ``[M, C]``.
        sites: int64 ``[M, 4]``, columns (batch, level, y, x).
        table: int64 ``[B, T]``, the rows that each image may choose queries from; -1 = none.
    """

    rows: Tensor
    sites: Tensor
    table: Tensor

    @abstractmethod
    def sample(
        self, value: Tensor, background: Tensor, locations: Tensor, weights: Tensor, extents: Tensor
    ) -> Tensor:
        """Sums bilinear samples of projected rows, see ``sparse_deform_attn``.

        Args:
            value: ``[M, C]``, projected rows.
            background: ``[L, C]``, what a sample reads at a pruned site.
        """


@dataclass(frozen=True)
class SparseMemory(Memory):
    """Rows of kept sites only."""

    supports: tuple[Support, ...]

    def sample(
        self, value: Tensor, background: Tensor, locations: Tensor, weights: Tensor, extents: Tensor
    ) -> Tensor:
        return sparse_deform_attn(value, self.supports, locations, weights, extents, background)


@dataclass(frozen=True)
class DenseMemory(Memory):
    """Rows of all sites, image by image, level by level.

    Attributes:
        shapes: (height, width) per level.
        inside: bool ``[M, 1]``, sites that are not padding; None: all.
    """

    shapes: tuple[tuple[int, int], ...]
    inside: Tensor | None

    def sample(
        self, value: Tensor, background: Tensor, locations: Tensor, weights: Tensor, extents: Tensor
    ) -> Tensor:
        # Pruned sites are rows here and hold the background already.
        if self.inside is not None:
            value = value * self.inside
        batch = locations.shape[0]
        parts = value.view(batch, -1, value.shape[-1]).split([h * w for h, w in self.shapes], 1)
        maps = [
            part.transpose(1, 2).unflatten(2, shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return dense_deform_attn(maps, locations, weights, extents)


def read_maps(
    maps: Sequence[FeatureMap], background: Tensor | None, valid: Sequence[Tensor] | None
) -> Memory:
    """Collects the maps of all levels, which are of one kind, into a memory.

    Args:
        maps: finest first.
        background: ``[L, C]``, features that stand at pruned sites; None: zero.
        valid: bool ``[B, H_l, W_l]`` per level, the sites that are not padding; None: all.
    """
    if isinstance(maps[0], SparseMap):
        return _read_sparse(maps)  # type: ignore[arg-type]
    kept = None
    if isinstance(maps[0], MaskedMap):
        kept = torch.cat([m.support.mask().flatten(1) for m in maps], 1)  # type: ignore[union-attr]
    tensors = [m.tensor if isinstance(m, MaskedMap) else m for m in maps]
    shapes = tuple((t.shape[-2], t.shape[-1]) for t in tensors)  # type: ignore[union-attr]
    tokens = torch.cat([t.flatten(2).transpose(1, 2) for t in tensors], 1)  # type: ignore[union-attr]
    batch, length, _ = tokens.shape
    device = tokens.device

    inside = None if valid is None else torch.cat([v.flatten(1) for v in valid], 1)
    if kept is not None and background is not None:
        pruned = ~kept if inside is None else inside & ~kept
        level = torch.cat([torch.full((h * w,), i) for i, (h, w) in enumerate(shapes)]).to(device)
        tokens = torch.where(pruned.unsqueeze(-1), background[level].to(tokens.dtype), tokens)
    table = torch.arange(batch * length, device=device).view(batch, length)
    if kept is not None:
        table = table.masked_fill(~kept, -1)
    return DenseMemory(
        tokens.flatten(0, 1),
        _grid_sites(batch, shapes, device),
        table,
        shapes,
        None if inside is None else inside.view(-1, 1),
    )


def _read_sparse(maps: Sequence[SparseMap]) -> SparseMemory:
    sites = torch.cat(
        [
            torch.cat([i[:, :1], torch.full_like(i[:, :1], level), i[:, 1:]], 1)
            for level, i in enumerate(m.support.indices.long() for m in maps)
        ]
    )
    ragged = Ragged.from_batch_index(sites[:, 0], maps[0].support.batch_size)
    table = ragged.pad(torch.arange(len(sites), device=sites.device), -1)
    rows = torch.cat([m.features for m in maps])
    return SparseMemory(rows, sites, table, tuple(m.support for m in maps))


def _grid_sites(batch: int, shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    grids = [
        torch.cartesian_prod(
            torch.tensor([level], device=device),
            torch.arange(h, device=device),
            torch.arange(w, device=device),
        )
        for level, (h, w) in enumerate(shapes)
    ]
    grid = torch.cat(grids).repeat(batch, 1)
    image = torch.arange(batch, device=device).repeat_interleave(len(grid) // max(batch, 1))
    return torch.cat([image[:, None], grid], 1)

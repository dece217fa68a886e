"""What the decoder reads: the rows of all levels, and how to sample between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
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
    """Rows level by level; each level's support tells where they lie."""

    supports: tuple[Support, ...]

    def sample(
        self, value: Tensor, background: Tensor, locations: Tensor, weights: Tensor, extents: Tensor
    ) -> Tensor:
        return sparse_deform_attn(value, self.supports, locations, weights, extents, background)


@dataclass(frozen=True)
class DenseMemory(Memory):
    """Rows of all sites, image by image, level by level; nothing is pruned and nothing is padding.

    Attributes:
        shapes: (height, width) per level.
    """

    shapes: tuple[tuple[int, int], ...]

    def sample(
        self, value: Tensor, background: Tensor, locations: Tensor, weights: Tensor, extents: Tensor
    ) -> Tensor:
        batch = locations.shape[0]
        parts = value.view(batch, -1, value.shape[-1]).split([h * w for h, w in self.shapes], 1)
        maps = [
            part.transpose(1, 2).unflatten(2, shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return dense_deform_attn(maps, locations, weights, extents)


def read_maps(maps: Sequence[FeatureMap], background: Tensor | None) -> Memory:
    """Collects the maps of all levels, which are of one kind, into a memory.

    Args:
        maps: finest first.
        background: ``[L, C]``, features that stand at pruned sites; None: zero.
    """
    if isinstance(maps[0], SparseMap):
        return _read_sparse(maps)  # type: ignore[arg-type]
    if isinstance(maps[0], MaskedMap):
        return _read_masked(maps, background)  # type: ignore[arg-type]
    return _read_dense(maps)  # type: ignore[arg-type]


def _read_dense(maps: Sequence[Tensor]) -> DenseMemory:
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
    batch, length, _ = tokens.shape
    shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
    table = torch.arange(batch * length, device=tokens.device).view(batch, length)
    sites = _grid_sites(batch, shapes, tokens.device)
    return DenseMemory(tokens.flatten(0, 1), sites, table, shapes)


def _read_sparse(maps: Sequence[SparseMap]) -> SparseMemory:
    rows, sites = torch.cat([m.features for m in maps]), _sites(m.support for m in maps)
    every_row = torch.arange(len(rows), device=rows.device)
    table = _table(every_row, sites, maps[0].support.batch_size)
    return SparseMemory(rows, sites, table, tuple(m.support for m in maps))


def _read_masked(maps: Sequence[MaskedMap], background: Tensor | None) -> SparseMemory:
    """Makes every site a row; pruned ones hold the background and are no candidates for queries.

    It samples as the sparse memory does: grid sampling rounds differently, which shows in gradients
    where a sample lies exactly on a cell's centre, as the initial offsets put it.
    """
    supports = [Support.full(*m.support.shape, m.tensor.device) for m in maps]
    rows = torch.cat(
        [SparseMap.from_dense(m.tensor, s).features for m, s in zip(maps, supports, strict=True)]
    )
    kept = torch.cat([m.support.mask().flatten() for m in maps])
    sites = _sites(supports)
    if background is not None:
        rows = torch.where(kept[:, None], rows, background[sites[:, 1]].to(rows.dtype))
    table = _table(kept.nonzero().flatten(), sites, maps[0].support.batch_size)
    return SparseMemory(rows, sites, table, tuple(supports))


def _sites(supports: Iterable[Support]) -> Tensor:
    """Joins the sites of all levels: int64 ``[M, 4]``, columns (batch, level, y, x)."""
    levels = [
        torch.cat([i[:, :1], torch.full_like(i[:, :1], level), i[:, 1:]], 1)
        for level, i in enumerate(s.indices.long() for s in supports)
    ]
    return torch.cat(levels)


def _table(rows: Tensor, sites: Tensor, batch_size: int) -> Tensor:
    """Sorts rows by image: int64 ``[B, T]``, -1 = none."""
    return Ragged.from_batch_index(sites[rows, 0], batch_size).pad(rows, -1)


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

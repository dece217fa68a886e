"""What the decoder reads: the rows of all levels, and how to sample between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_dset.ops import (
    dense_deform_attn,
    project_and_sample,
    resolve_backend,
    sparse_deform_attn,
)
from sparse_dset.structures import MaskedMap, SparseMap, Support, rows_to_map
from sparse_dset.structures.maps import FeatureMap
from sparse_dset.structures.outputs import TokenRows
from sparse_dset.structures.ragged import Ragged


@dataclass(frozen=True)
class Memory(TokenRows):
    """The rows that the decoder samples.

    Attributes:
        supports: where the rows of each level lie.
        whole: nothing is pruned and nothing is padding: the rows of a level are a dense map.
    """

    supports: tuple[Support, ...]
    whole: bool

    def sample(
        self, value: Tensor, background: Tensor, locations: Tensor, weights: Tensor, extents: Tensor
    ) -> Tensor:
        """Sums bilinear samples of projected rows, see ``sparse_deform_attn``.

        Args:
            value: ``[M, C]``, projected rows.
            background: ``[L, C]``, what a sample reads at a pruned site.
        """
        dtype = torch.promote_types(value.dtype, locations.dtype)
        # The gradient of ``grid_sample`` is not deterministic on a GPU.
        any_order = not torch.are_deterministic_algorithms_enabled()
        if self.whole and any_order and resolve_backend("auto", value.device, dtype).samples_maps:
            rows = value.split([support.num_sites for support in self.supports])
            maps = [
                rows_to_map(part, *support.shape)
                for part, support in zip(rows, self.supports, strict=True)
            ]
            return dense_deform_attn(maps, locations, weights, extents)
        return sparse_deform_attn(value, self.supports, locations, weights, extents, background)

    def project_and_sample(
        self,
        projection: nn.Linear,
        background: Tensor | None,
        locations: Tensor,
        weights: Tensor,
        extents: Tensor,
    ) -> Tensor:
        """Sums samples of rows, projected before or after, whichever costs less (inference only).

        Args:
            background: ``[L, C]``, unprojected features of pruned sites; None: zero.
        """
        return project_and_sample(
            self.rows,
            projection.weight,
            projection.bias,
            self.supports,
            locations,
            weights,
            extents,
            background,
        )


def read_maps(maps: Sequence[FeatureMap], background: Tensor | None) -> Memory:
    """Collects the maps of all levels, which are of one kind, into a memory.

    Args:
        maps: finest first.
        background: ``[L, C]``, features that stand at pruned sites; None: zero.
    """
    if isinstance(maps[0], SparseMap):
        return _read_sparse(maps, whole=False)  # type: ignore[arg-type]
    if isinstance(maps[0], MaskedMap):
        return _read_masked(maps, background)  # type: ignore[arg-type]
    return _read_sparse([_whole(m) for m in maps], whole=True)  # type: ignore[arg-type]


def _whole(tensor: Tensor) -> SparseMap:
    batch, _, height, width = tensor.shape
    return SparseMap.from_dense(tensor, Support.full(batch, height, width, tensor.device))


def _read_sparse(maps: Sequence[SparseMap], whole: bool) -> Memory:
    supports = tuple(m.support for m in maps)
    rows, sites = torch.cat([m.features for m in maps]), _sites(supports)
    every_row = torch.arange(len(rows), device=rows.device)
    if whole:
        table = _whole_table(every_row, supports)
    else:
        table = _table(every_row, sites, supports[0].batch_size)
    return Memory(rows, sites, table, supports, whole)


def _read_masked(maps: Sequence[MaskedMap], background: Tensor | None) -> Memory:
    """Makes every site a row; pruned ones hold the background and are no candidates for queries.

    It samples as the sparse memory does: grid sampling rounds differently, which shows in gradients
    where a sample lies exactly on a cell's centre, as the initial offsets put it.
    """
    whole = [_whole(m.tensor) for m in maps]
    rows = torch.cat([m.features for m in whole])
    kept = torch.cat([m.support.mask().flatten() for m in maps])
    sites = _sites(m.support for m in whole)
    if background is not None:
        rows = torch.where(kept[:, None], rows, background[sites[:, 1]].to(rows.dtype))
    table = _table(kept.nonzero().flatten(), sites, maps[0].support.batch_size)
    return Memory(rows, sites, table, tuple(m.support for m in whole), whole=False)


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


def _whole_table(rows: Tensor, supports: Sequence[Support]) -> Tensor:
    """The same where every image has every site."""
    levels = rows.split([support.num_sites for support in supports])
    return torch.cat([part.view(s.batch_size, -1) for part, s in zip(levels, supports)], dim=1)

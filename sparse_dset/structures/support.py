"""The geometry of one feature level: which sites are kept, and how to find their neighbours."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparse_dset.checks import check_has_values, check_tensor
from sparse_dset.structures.grid import enlarged
from sparse_dset.structures.tables import PLAIN_TABLES, Tables, check_window

_MOST_CELLS = 2**31 - 1  # rows are counted in 32 bits
_MOST_SIDE = 2**20


class Support:
    """The kept sites of one level, immutable, with lazily cached lookup tables.

    Sites are sorted by (batch, y, x), so two supports with the same mask hold the same rows in
    the same order. Build one per level and forward pass, and share it: every table is made once.

    Attributes:
        indices: ``[N, 3]`` int32, contiguous, columns (batch, y, x).
        batch_size, height, width: the size of the grid that the sites lie on.
    """

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        height: int,
        width: int,
        tables: Tables = PLAIN_TABLES,
    ) -> None:
        """Takes sites that are known to be sorted; see ``from_mask`` and ``from_indices``.

        Args:
            tables: makes the lookup tables.
        """
        if indices.dim() != 2 or indices.shape[1] != 3 or indices.dtype != torch.int32:
            raise ValueError(
                f"indices must be int32 [N, 3], got {indices.dtype} {tuple(indices.shape)}"
            )
        self.indices = indices
        self.batch_size = batch_size
        self.height = height
        self.width = width
        self._maker = tables
        # A plain dict: compiled graphs cannot trace the lock in functools.cached_property.
        self._tables: dict[str, Tensor] = {}

    @classmethod
    def from_mask(cls, mask: Tensor, tables: Tables = PLAIN_TABLES) -> Support:
        """Builds the support of a bool mask ``[B, H, W]`` (True = kept).

        Args:
            tables: makes the sites and the lookup tables; a backend has its own.
        """
        check_tensor("mask", mask, "[B, H, W]", "bool")
        check_has_values("mask", mask)
        indices, row_map = tables.sites(mask)
        batch_size, height, width = mask.shape
        support = cls(indices, batch_size, height, width, tables)
        if row_map is not None:
            support._tables["row_map"] = row_map
        return support

    @classmethod
    def from_indices(cls, indices: Tensor, batch_size: int, height: int, width: int) -> Support:
        """Builds a support from sites in any order.

        Its own ``indices`` are sorted by (batch, y, x), and rows of features follow them: features
        of sites in another order are to be sorted alike.

        Args:
            indices: ``[N, 3]`` integers, columns (batch, y, x), without duplicates.

        Raises:
            ValueError: a site outside the grid or given twice; the message shows the row.
        """
        check_tensor("indices", indices, "[N, 3]", "integer")
        check_has_values("indices", indices)
        if indices.shape[1] != 3:
            raise ValueError(
                f"indices must be [N, 3] of integers, got {indices.dtype} {tuple(indices.shape)}"
            )
        _check_grid(batch_size, height, width)
        limits = torch.tensor([batch_size, height, width], device=indices.device)
        bad = ((indices < 0) | (indices >= limits)).any(dim=1).nonzero()
        if len(bad):
            row = int(bad[0])
            raise ValueError(
                f"indices[{row}] = {indices[row].tolist()} is outside the grid: (batch, y, x) must "
                f"be below ({batch_size}, {height}, {width}); check the order of the columns"
            )
        mask = torch.zeros(batch_size, height, width, dtype=torch.bool, device=indices.device)
        mask[tuple(indices.long().unbind(1))] = True
        support = cls.from_mask(mask)
        if support.num_sites != len(indices):
            raise ValueError(f"{len(indices) - support.num_sites} of {len(indices)} indices repeat")
        return support

    @classmethod
    def full(
        cls, batch_size: int, height: int, width: int, device: torch.device | str = "cpu"
    ) -> Support:
        """Returns the support that keeps every site, with its tables, made once and shared."""
        # A tracer's sizes are tensors, under which nothing is found again.
        shape = int(batch_size), int(height), int(width)
        _check_grid(*shape)
        return _full(*shape, torch.device(device))

    @property
    def num_sites(self) -> int:
        """The number N of kept sites in the whole batch."""
        return self.indices.shape[0]

    @property
    def is_full(self) -> bool:
        """Whether every site of the grid is kept."""
        return self.num_sites == self.batch_size * self.height * self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch size, height, width) of the grid."""
        return self.batch_size, self.height, self.width

    @property
    def device(self) -> torch.device:
        return self.indices.device

    def same_sites(self, other: Support) -> bool:
        """Tells whether both supports keep the same sites of the same grid."""
        return self is other or (
            self.shape == other.shape and torch.equal(self.indices, other.indices)
        )

    def mask(self) -> Tensor:
        """Returns the kept sites as a bool mask ``[B, H, W]`` (cached)."""
        return self._once("mask", self._make_mask)

    def row_map(self) -> Tensor:
        """Returns the row of each site, or -1: int32 ``[B, H, W]`` (cached)."""
        return self._once("row_map", self._make_row_map)

    def flat_index(self) -> Tensor:
        """Returns each site's position in the flattened grid: int64 ``[N]`` (cached)."""
        return self._once("flat_index", self._make_flat_index)

    def neighbors(self, size: int = 3) -> Tensor:
        """Returns the rows of the window of ``size`` x ``size`` cells around each site.

        Returns:
            int32 ``[N, size * size]``, taps in row-major order, -1 where there is no site (cached).
        """
        return self._once(f"neighbors{size}", lambda: self._windows(self, size, stride=1))

    def strided_neighbors(self, finer: Support, size: int = 3) -> Tensor:
        """Returns the rows, in ``finer``, of the window with stride 2 and "same" padding.

        Args:
            finer: the support of the level with twice the resolution; output site (y, x) reads
                the window whose centre is (2y, 2x).
            size: cells of a side of the window, odd.

        Returns:
            int32 ``[N, size * size]``, taps in row-major order, -1 where there is no site.
        """
        _check_halved(finer, self)
        return self._windows(finer, size, stride=2)

    def parents(self, coarser: Support) -> Tensor:
        """Returns each site's parent row (b, y // 2, x // 2) in the coarser level: int64 ``[N]``.

        Raises:
            ValueError: a grid of another size, or a site whose parent is not kept: the supports do
                not nest.
        """
        _check_halved(self, coarser)
        row_map = coarser.row_map()
        rows = self._indexed(lambda: self._maker.parents(self.indices, row_map), (IndexError,))
        if rows.numel() and int(rows.min()) < 0:
            site = self.indices[int(rows.argmin())].tolist()
            raise ValueError(f"site (batch, y, x) = {site} has no kept parent: supports must nest")
        return rows

    def counts(self) -> Tensor:
        """Returns the number of kept sites per image: int64 ``[B]`` (cached)."""
        return self._once("counts", self._make_counts)

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self._tables:
            self._tables[name] = make()
        return self._tables[name]

    def _windows(self, source: Support, size: int, stride: int) -> Tensor:
        check_window(size)
        row_map = source.row_map()
        return self._indexed(
            lambda: self._maker.windows(row_map, self.indices, size, stride), (IndexError,)
        )

    def _make_mask(self) -> Tensor:
        return self.row_map() >= 0

    def _make_row_map(self) -> Tensor:
        _check_grid(*self.shape)
        rows = torch.full(
            (self.batch_size * self.height * self.width,), -1, dtype=torch.int32, device=self.device
        )
        numbers = torch.arange(self.num_sites, dtype=torch.int32, device=self.device)
        return self._indexed(
            lambda: rows.index_put_((self.flat_index(),), numbers).view(self.shape)
        )

    def _indexed(
        self,
        make: Callable[[], Tensor],
        errors: tuple[type[Exception], ...] = (IndexError, RuntimeError),
    ) -> Tensor:
        # Looking at all sites first would hold up a GPU.
        try:
            return make()
        except errors as error:
            raise ValueError(
                f"indices of {self} lie outside its grid, see Support.from_indices: {error}"
            ) from error

    def _make_flat_index(self) -> Tensor:
        batch, y, x = self.indices.long().unbind(1)
        return (batch * self.height + y) * self.width + x

    def _make_counts(self) -> Tensor:
        return self._indexed(
            lambda: torch.bincount(self.indices[:, 0].long(), minlength=self.batch_size)
        )

    def __repr__(self) -> str:
        return f"Support({self.num_sites} of {self.batch_size}x{self.height}x{self.width} sites)"


def _check_grid(batch_size: int, height: int, width: int) -> None:
    for value in (batch_size, height, width):
        # A grid without cells may still have many images, and each has a count.
        if not 0 <= value <= _MOST_SIDE or batch_size * height * width > _MOST_CELLS:
            raise ValueError(
                f"a grid must have sides and images in 0..{_MOST_SIDE} and at most {_MOST_CELLS} "
                f"cells, got batch_size, height, width = {batch_size}, {height}, {width}"
            )


@functools.lru_cache(maxsize=32)
def _full(batch_size: int, height: int, width: int, device: torch.device) -> Support:
    # Its tables outlive the forward pass: made here, none of them is an inference tensor, which
    # training could not use.
    with torch.inference_mode(False):
        mask = torch.ones(batch_size, height, width, dtype=torch.bool, device=device)
        support = Support.from_mask(mask)
        for table in (support.mask, support.flat_index, support.neighbors, support.counts):
            table()
    return support


@functools.lru_cache(maxsize=16)
def full_windows(
    batch_size: int, height: int, width: int, size: int, stride: int, device: torch.device
) -> Tensor:
    """Returns the windows of a convolution with "same" padding of a map whose cells are all kept.

    Returns:
        int32 ``[B * ceil(H / stride) * ceil(W / stride), size * size]`` rows, -1 outside the map.
    """
    with torch.inference_mode(False):  # it outlives the forward pass
        source = Support.full(batch_size, height, width, device)
        if stride == 1:
            return source.neighbors(size)
        target = Support.full(batch_size, (height + 1) // 2, (width + 1) // 2, device)
        return target.strided_neighbors(source, size)


def _check_halved(finer: Support, coarser: Support) -> None:
    expected = (finer.batch_size, (finer.height + 1) // 2, (finer.width + 1) // 2)
    if coarser.shape != expected:
        raise ValueError(
            f"a stride-2 convolution from {finer.shape} gives the grid {expected}, "
            f"not {coarser.shape}"
        )


def check_nested(masks: Sequence[Tensor]) -> None:
    """Checks that every kept site lies under a kept site of the next coarser level.

    Args:
        masks: bool ``[B, H_l, W_l]``, finest level first.

    Raises:
        ValueError: names the level and the first site without a kept parent.
    """
    for level, mask in enumerate(masks):
        check_tensor(f"masks[{level}]", mask, "[B, H, W]", "bool", masks[0].device)
        check_has_values(f"masks[{level}]", mask)
    for level, (fine, coarse) in enumerate(itertools.pairwise(masks)):
        parents = enlarged(coarse)
        if len(coarse) != len(fine) or any(a < b for a, b in zip(parents.shape, fine.shape)):
            raise ValueError(
                f"masks must halve from level to level, got {tuple(fine.shape)} and "
                f"{tuple(coarse.shape)}"
            )
        orphans = fine & ~parents[:, : fine.shape[1], : fine.shape[2]]
        if orphans.any():
            site = orphans.nonzero()[0].tolist()
            raise ValueError(
                f"kept masks must nest: site (batch, y, x) = {site} of level {level} has no kept "
                f"parent at level {level + 1}"
            )

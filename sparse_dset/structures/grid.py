"""Grids of cells: dense maps as rows and back, and cells of one level as those of a finer one."""

from __future__ import annotations

from torch import Tensor


def map_to_rows(tensor: Tensor) -> Tensor:
    """Returns the cells of a map ``[B, C, H, W]`` as rows ``[B * H * W, C]``."""
    return tensor.permute(0, 2, 3, 1).flatten(0, 2)


def rows_to_map(rows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Returns the map ``[B, C, H, W]``, in channels-last memory, whose cells these rows are."""
    return rows.view(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def enlarged(cells: Tensor, factor: int = 2) -> Tensor:
    """Repeats each cell ``[B, H, W]`` along both axes: ``[B, factor * H, factor * W]``."""
    return cells.repeat_interleave(factor, 1).repeat_interleave(factor, 2)

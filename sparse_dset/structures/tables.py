"""How the lookup tables of a support are made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGEST_WINDOW = 63


def check_window(size: int) -> None:
    """Raises a ValueError if a window's side is not odd, or beyond what tables are made for."""
    if not 1 <= size <= _LARGEST_WINDOW or size % 2 == 0:
        raise ValueError(f"a window's size must be odd and in 1..{_LARGEST_WINDOW}, got {size}")


class Tables:
    """Makes tables in plain PyTorch, on every device; backends may have faster ones."""

    def sites(self, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Finds the kept sites of a bool mask ``[B, H, W]``.

        Returns:
            int32 ``[N, 3]``, columns (batch, y, x), in this order; and their row map, see
            ``Support.row_map``, where it comes along, else None.
        """
        return mask.nonzero().to(torch.int32).contiguous(), None

    def windows(self, row_map: Tensor, indices: Tensor, size: int, stride: int) -> Tensor:
        """Finds the rows of the window around (y * stride, x * stride) of each site.

        Args:
            row_map: of the support that the rows are of, int32 ``[B, H, W]``.
            indices: int32 ``[N, 3]``, columns (batch, y, x).
            size: cells of a side of the window, odd.

        Returns:
            int32 ``[N, size * size]``, taps in row-major order, -1 where there is no site.
        """
        _check_not_negative(indices)
        reach = size // 2
        padded = F.pad(row_map, (reach, reach, reach, reach), value=-1)
        offsets = torch.arange(size, device=row_map.device)
        batch, y, x = indices.long().unbind(1)
        rows = (y * stride)[:, None, None] + offsets[:, None]
        columns = (x * stride)[:, None, None] + offsets[None, :]
        return padded[batch[:, None, None], rows, columns].flatten(1)

    def parents(self, indices: Tensor, coarser_row_map: Tensor) -> Tensor:
        """Finds the row of each site's parent (b, y // 2, x // 2), -1 = none: int64 ``[N]``."""
        _check_not_negative(indices)
        batch, y, x = indices.long().unbind(1)
        return coarser_row_map[batch, y // 2, x // 2].long()


def _check_not_negative(indices: Tensor) -> None:
    """PyTorch would count from the other end. On a GPU a look at the sites would wait for it."""
    seen = indices.is_cpu and not torch.compiler.is_compiling()
    if seen and indices.numel() and int(indices.min()) < 0:
        raise IndexError(f"a site of {indices.min()} lies outside every grid")


PLAIN_TABLES = Tables()

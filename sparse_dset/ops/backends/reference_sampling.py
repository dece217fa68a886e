"""Deformable sampling in plain PyTorch: what every faster backend is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.structures.support import Support


def sample_rows(
    value: Tensor,
    supports: Sequence[Support],
    locations: Tensor,
    weights: Tensor,
    extents: Tensor,
    background: Tensor | None,
) -> Tensor:
    """Sums bilinear samples of the rows of all levels; see ``sparse_deform_attn``."""
    batch, queries, heads, levels, points, _ = locations.shape
    dtype = sum_dtype(value, weights)
    table = [value] if background is None else [value, background]
    nothing = value.new_zeros(1, value.shape[1])
    rows = torch.cat([part.to(dtype) for part in [*table, nothing]])

    pixels = locations * extents.flip(-1)[:, None, None, :, None, :] - 0.5
    corners, shares = _corners(pixels)
    index = torch.stack(
        [
            _find_rows(corners[:, :, :, level], support, extents[:, level])
            for level, support in enumerate(supports)
        ],
        dim=3,
    )
    index = _place_in_table(index, supports, len(rows) - 1, background is not None)
    index = index * heads + torch.arange(heads, device=index.device).view(heads, 1, 1, 1)
    # One bag per query and head: the samples are never laid out in memory.
    samples = levels * points * 4
    sampled = F.embedding_bag(
        index.view(-1, samples),
        rows.view(len(rows) * heads, -1),
        per_sample_weights=(weights.unsqueeze(-1) * shares).to(dtype).reshape(-1, samples),
        mode="sum",
    )
    return sampled.view(batch, queries, value.shape[1]).to(value.dtype)


def sum_dtype(value: Tensor, weights: Tensor) -> torch.dtype:
    """Returns the type in which samples are summed: float32 or wider."""
    return torch.promote_types(torch.promote_types(value.dtype, weights.dtype), torch.float32)


def _corners(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the four cells around each coordinate.

    Args:
        pixels: ``[..., 2]``, (x, y).

    Returns:
        The cells, int64 ``[..., 4, 2]`` (x, y), and their bilinear shares ``[..., 4]``.
    """
    first = pixels.detach().floor()
    x, y = (pixels - first).unbind(-1)
    shares = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=-1)
    steps = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=pixels.device)
    return first.long().unsqueeze(-2) + steps, shares


def _find_rows(corners: Tensor, support: Support, extent: Tensor) -> Tensor:
    """Returns the row of each cell of one level: -1 = a cell without a row, -2 = outside the image.

    Args:
        corners: int64 ``[B, ..., 2]`` (x, y).
        extent: ``[B, 2]``, (height, width) of each image in cells.
    """
    grid = extent.new_tensor([support.width, support.height])
    limits = torch.minimum(extent.flip(-1).ceil(), grid).long()
    limits = limits.view(-1, *[1] * (corners.dim() - 2), 2)
    inside = ((corners >= 0) & (corners < limits)).all(-1)
    x, y = corners.where(inside.unsqueeze(-1), 0).unbind(-1)
    image = torch.arange(support.batch_size, device=x.device).view(-1, *[1] * (x.dim() - 1))
    return support.row_map()[image, y, x].long().where(inside, -2)


def _place_in_table(
    index: Tensor, supports: Sequence[Support], nothing: int, has_background: bool
) -> Tensor:
    """Turns rows within a level into places in [rows of all levels, background, zero].

    Args:
        index: int64 ``[B, Q, heads, L, P, 4]`` as ``_find_rows`` gives it.
        nothing: the place of the zero row.
    """
    sizes = torch.tensor([support.num_sites for support in supports], device=index.device)
    shape = (len(supports), 1, 1)
    place = index + (sizes.cumsum(0) - sizes).view(shape)
    empty = torch.full_like(sizes, nothing)
    if has_background:
        empty = nothing - len(supports) + torch.arange(len(supports), device=index.device)
    return torch.where(index >= 0, place, empty.view(shape)).where(index != -2, nothing)

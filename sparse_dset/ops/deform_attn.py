"""Multi-scale deformable attention over kept sites, and the same over dense maps.

Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.structures.support import Support


def sparse_deform_attn(
    value: Tensor,
    supports: Sequence[Support],
    locations: Tensor,
    weights: Tensor,
    extents: Tensor,
    background: Tensor | None = None,
) -> Tensor:
    """Sums bilinear samples of the rows of all levels.

    A location maps to the cell coordinate ``location * extent - 0.5`` of its level, as in
    ``grid_sample(align_corners=False, padding_mode="zeros")`` on a map of ``ceil(extent)`` cells.
    A neighbouring cell outside the image reads zero, one without a row the level's background.

    Args:
        value: ``[M, heads * dim]``, the rows of level 0, then of level 1, and so on.
        supports: L supports, where the rows of each level lie.
        locations: ``[B, Q, heads, L, P, 2]``, (x, y) in [0, 1] of the image's own size.
        weights: ``[B, Q, heads, L, P]``.
        extents: ``[B, L, 2]``, the image's (height, width) in cells, fractions included.
        background: ``[L, heads * dim]``; None reads zero.

    Returns:
        ``[B, Q, heads * dim]`` of the dtype of ``value``; sums are made in float32 or wider.

    Raises:
        ValueError: shapes that do not fit; the message names the argument.
    """
    batch, queries, heads, levels, points, _ = _check(locations, weights, extents)
    _check_value(value, supports, background, batch, heads, levels)
    dtype = _sum_dtype(value, weights)
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


def dense_deform_attn(
    maps: Sequence[Tensor], locations: Tensor, weights: Tensor, extents: Tensor
) -> Tensor:
    """Sums bilinear samples of dense maps; see ``sparse_deform_attn`` for the other arguments.

    Args:
        maps: L maps ``[B, heads * dim, H_l, W_l]``, zero in the padding.

    Returns:
        ``[B, Q, heads * dim]`` of the dtype of the maps.
    """
    batch, queries, heads, levels, _, _ = _check(locations, weights, extents)
    _check_maps(maps, batch, heads, levels)
    channels = maps[0].shape[1]
    dtype = _sum_dtype(maps[0], weights)
    if batch * queries == 0:
        return maps[0].new_zeros(batch, queries, channels)
    total = torch.zeros((), dtype=dtype, device=weights.device)
    for level, level_map in enumerate(maps):
        size = extents.new_tensor([level_map.shape[3], level_map.shape[2]])
        cells = locations[:, :, :, level] * extents[:, None, None, None, level].flip(-1)
        grid = 2 * cells / size - 1
        sampled = F.grid_sample(
            level_map.to(dtype).reshape(batch * heads, -1, *level_map.shape[2:]),
            grid.to(dtype).transpose(1, 2).flatten(0, 1),
            align_corners=False,
        )
        share = weights[:, :, :, level].to(dtype).transpose(1, 2).flatten(0, 1)
        total = total + (sampled * share.unsqueeze(1)).sum(-1)
    return total.view(batch, channels, queries).transpose(1, 2).to(maps[0].dtype)


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


def _sum_dtype(value: Tensor, weights: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(value.dtype, weights.dtype), torch.float32)


def _check(locations: Tensor, weights: Tensor, extents: Tensor) -> torch.Size:
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(f"locations must be [B, Q, heads, L, P, 2], got {tuple(locations.shape)}")
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"weights must be {tuple(locations.shape[:-1])} like locations, "
            f"got {tuple(weights.shape)}"
        )
    expected = (locations.shape[0], locations.shape[3], 2)
    if extents.shape != expected:
        raise ValueError(f"extents must be [B, L, 2] = {expected}, got {tuple(extents.shape)}")
    return locations.shape


def _check_value(
    value: Tensor,
    supports: Sequence[Support],
    background: Tensor | None,
    batch: int,
    heads: int,
    levels: int,
) -> None:
    sizes = [support.batch_size for support in supports]
    if sizes != [batch] * levels:
        raise ValueError(
            f"supports must be {levels} supports of {batch} images, got batch sizes {sizes}"
        )
    num_rows = sum(support.num_sites for support in supports)
    if value.dim() != 2 or len(value) != num_rows or value.shape[1] % heads:
        raise ValueError(
            f"value must be [{num_rows}, a multiple of {heads} heads], got {tuple(value.shape)}"
        )
    if background is not None and background.shape != (levels, value.shape[1]):
        raise ValueError(
            f"background must be {(levels, value.shape[1])}, got {tuple(background.shape)}"
        )


def _check_maps(maps: Sequence[Tensor], batch: int, heads: int, levels: int) -> None:
    channels = maps[0].shape[1]
    shapes = [tuple(level_map.shape) for level_map in maps]
    if channels % heads or [shape[:2] for shape in shapes] != [(batch, channels)] * levels:
        raise ValueError(
            f"maps must be {levels} maps [{batch}, a multiple of {heads} heads, H, W], got {shapes}"
        )

"""Multi-scale deformable attention over kept sites, and the same over dense maps.

Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.checks import check_gradient, check_tensor
from sparse_dset.ops.backends.choice import AUTO, resolve_backend
from sparse_dset.ops.backends.reference import Backend
from sparse_dset.ops.backends.reference_sampling import sum_dtype
from sparse_dset.ops.inference import pointwise_conv
from sparse_dset.ops.shapes import check_bias
from sparse_dset.structures.support import Support

ORDERS = ("project_first", "sample_first")
"""Of a projection and of sampling; both orders give the same."""

SAMPLING_COST = 4.0
"""What a multiply-add of sampling costs, in multiply-adds of a matrix product (measured)."""


def sparse_deform_attn(
    value: Tensor,
    supports: Sequence[Support],
    locations: Tensor,
    weights: Tensor,
    extents: Tensor,
    background: Tensor | None = None,
    backend: str | Backend = AUTO,
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
        backend: one of ``backends.NAMES``, or an object.

    Returns:
        ``[B, Q, heads * dim]`` of the dtype of ``value``; sums are made in float32 or wider.

    Raises:
        ValueError: shapes that do not fit; the message names the argument.
    """
    batch, _, heads, levels, *_ = _check(locations, weights, extents)
    _check_value(value, supports, background, batch, heads, levels)
    check_gradient(value, locations, weights, extents, background)
    dtype = torch.promote_types(sum_dtype(value, weights), locations.dtype)
    chosen = resolve_backend(backend, value.device, dtype)
    return chosen.sample(value, supports, locations, weights, extents, background)


def project_and_sample(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    supports: Sequence[Support],
    locations: Tensor,
    weights: Tensor,
    extents: Tensor,
    background: Tensor | None = None,
    order: str = "auto",
) -> Tensor:
    """Samples rows after a linear projection, or projects what was sampled: both are linear.

    Projecting first costs a product per row; sampling first samples all channels for every head,
    and projects per query, which is less where rows are many. For inference: no gradients.

    Args:
        rows: ``[M, C]``, as ``value`` of ``sparse_deform_attn`` before the projection.
        weight, bias: of the projection, ``[heads * dim, C]`` and ``[heads * dim]``.
        supports, locations, weights, extents: see ``sparse_deform_attn``.
        background: ``[L, C]``, unprojected features of cells without a row; None: zero.
        order: "project_first", "sample_first" (where the backend can), or "auto" for the
            cheaper one.

    Returns:
        ``[B, Q, heads * dim]``.

    Raises:
        ValueError: an argument that does not fit; the message names it.
    """
    batch, queries, heads, levels, _, _ = _check(locations, weights, extents)
    _check_value(rows, supports, background, batch, 1, levels)
    _check_projection(weight, bias, rows, heads)
    if background is None:
        background = rows.new_zeros(levels, rows.shape[1])
    if order == "auto":
        order = cheaper_order(rows, weights.shape, weights.dtype)
    elif order not in ORDERS:
        raise ValueError(f"unknown order {order!r}: choose one of auto, {', '.join(ORDERS)}")
    if order == "project_first":
        value = pointwise_conv(rows, weight, bias)
        empty = F.linear(background.to(weight.dtype), weight, bias)
        return sparse_deform_attn(value, supports, locations, weights, extents, empty)
    backend = resolve_backend(AUTO, rows.device, sum_dtype(rows, weights))
    if not backend.projects_late:
        raise ValueError(
            f"order 'sample_first' is none of backend {backend.name!r} on {rows.device}: choose "
            "auto"
        )
    sampled, coverage = backend.sample_whole_rows(
        rows, supports, locations, weights, extents, background
    )
    # The kernel sums in float32 or wider, and so does the projection.
    per_head = weight.view(heads, -1, weight.shape[1]).transpose(1, 2).to(sampled.dtype)
    projected = torch.bmm(sampled.flatten(0, 1).transpose(0, 1), per_head).transpose(0, 1)
    projected = projected + coverage.flatten(0, 1).unsqueeze(-1) * bias.view(heads, -1)
    return projected.reshape(batch, queries, -1).to(rows.dtype)


def cheaper_order(rows: Tensor, shape: Sequence[int], dtype: torch.dtype) -> str:
    """Compares both orders of ``project_and_sample`` by their multiply-adds.

    Args:
        rows: ``[M, C]``; the projection is as wide.
        shape: of the weights, ``[B, Q, heads, L, P]``.
        dtype: of the weights.
    """
    sums = torch.promote_types(torch.promote_types(rows.dtype, dtype), torch.float32)
    if not resolve_backend(AUTO, rows.device, sums).projects_late:
        return "project_first"
    num_rows, channels = rows.shape
    queries, heads = shape[0] * shape[1], shape[2]
    corners = 4 * math.prod(shape) * channels
    project_first = num_rows * channels**2 + SAMPLING_COST * corners / heads
    sample_first = queries * channels**2 + SAMPLING_COST * corners
    return "sample_first" if sample_first < project_first else "project_first"


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
    _check_maps(maps, batch, heads, levels, weights.device)
    check_gradient(*maps, locations, weights, extents)
    channels = maps[0].shape[1]
    dtype = sum_dtype(maps[0], weights)
    if batch * queries == 0:
        return maps[0].new_zeros(batch, queries, channels)
    total = torch.zeros((), dtype=dtype, device=weights.device)
    for level, level_map in enumerate(maps):
        size = extents.new_tensor([level_map.shape[3], level_map.shape[2]])
        cells = locations[:, :, :, level] * extents[:, None, None, None, level].flip(-1)
        grid = 2 * cells / size - 1
        sampled = F.grid_sample(
            level_map.to(dtype).reshape(batch * heads, channels // heads, *level_map.shape[2:]),
            grid.to(dtype).transpose(1, 2).flatten(0, 1),
            align_corners=False,
        )
        share = weights[:, :, :, level].to(dtype).transpose(1, 2).flatten(0, 1)
        total = total + (sampled * share.unsqueeze(1)).sum(-1)
    return total.view(batch, channels, queries).transpose(1, 2).to(maps[0].dtype)


def _check(locations: Tensor, weights: Tensor, extents: Tensor) -> torch.Size:
    check_tensor("locations", locations, "[B, Q, heads, L, P, 2]", "float")
    check_tensor("weights", weights, "[B, Q, heads, L, P]", "float", locations.device)
    if locations.shape[-1] != 2:
        raise ValueError(f"locations must be [B, Q, heads, L, P, 2], got {tuple(locations.shape)}")
    if 0 in locations.shape[2:]:
        raise ValueError(
            f"locations must have at least one head, level and point, got {tuple(locations.shape)}"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"weights must be {tuple(locations.shape[:-1])} like locations, "
            f"got {tuple(weights.shape)}"
        )
    expected = (locations.shape[0], locations.shape[3], 2)
    check_tensor("extents", extents, f"[B, L, 2] = {expected}", "real", locations.device)
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
    check_tensor("value", value, "[M, channels]", "float")
    if background is not None:
        check_tensor("background", background, f"{(levels, value.shape[1])}", "float", value.device)
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


def _check_projection(weight: Tensor, bias: Tensor, rows: Tensor, heads: int) -> None:
    check_tensor("weight", weight, "[heads * dim, C]", "float", rows.device)
    if weight.shape[1] != rows.shape[1] or len(weight) % heads:
        raise ValueError(
            f"weight must be [a multiple of {heads} heads, {rows.shape[1]}], got "
            f"{tuple(weight.shape)}"
        )
    check_bias(bias, weight)


def _check_maps(
    maps: Sequence[Tensor], batch: int, heads: int, levels: int, device: torch.device
) -> None:
    for level, level_map in enumerate(maps):
        check_tensor(f"maps[{level}]", level_map, "[B, C, H, W]", "float", device)
    shapes = [tuple(level_map.shape) for level_map in maps]
    if not maps or any(0 in shape[1:] for shape in shapes):
        raise ValueError(f"maps must be {levels} maps with channels and cells, got {shapes}")
    channels = maps[0].shape[1]
    if channels % heads or [shape[:2] for shape in shapes] != [(batch, channels)] * levels:
        raise ValueError(
            f"maps must be {levels} maps [{batch}, a multiple of {heads} heads, H, W], got {shapes}"
        )

"""Overlap of boxes, in float32 and without NaN on boxes that have no area."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-7


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Converts ``[..., 4]`` from (centre x, centre y, width, height) to corners."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Converts ``[..., 4]`` from corners to (centre x, centre y, width, height)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union, elementwise with broadcasting.

    Args:
        first, second: cxcywh ``[..., 4]``, any floating dtype; negative sizes count as zero.

    Returns:
        float32 ``[...]`` in [0, 1]; 0 where both boxes have no area.
    """
    intersection, union, _ = _areas(first, second)
    return (intersection / union.clamp(min=_EPS**2)).clamp(max=1.0)  # rounding of tiny boxes


def box_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019), elementwise with broadcasting.

    Args:
        first, second: cxcywh ``[..., 4]``, any floating dtype; negative sizes count as zero.

    Returns:
        float32 ``[...]`` in [-1, 1].
    """
    intersection, union, hull = _areas(first, second)
    iou = intersection / union.clamp(min=_EPS**2)
    return iou - (hull - union) / hull.clamp(min=_EPS**2)


def box_l1(first: Tensor, second: Tensor) -> Tensor:
    """Sum of the absolute differences of the four numbers: float32 ``[...]``."""
    return (first.float() - second.float()).abs().sum(dim=-1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of cxcywh ``[..., N, 4]`` with ``[..., M, 4]``: float32 ``[..., N, M]``."""
    return box_iou(first.unsqueeze(-2), second.unsqueeze(-3))


def pairwise_giou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU of cxcywh ``[..., N, 4]`` with ``[..., M, 4]``: float32 ``[..., N, M]``."""
    return box_giou(first.unsqueeze(-2), second.unsqueeze(-3))


def pairwise_l1(first: Tensor, second: Tensor) -> Tensor:
    """L1 distance of ``[..., N, 4]`` to ``[..., M, 4]``: float32 ``[..., N, M]``."""
    return torch.cdist(first.float(), second.float(), p=1.0)


def _areas(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of the intersection, the union and the smallest box around both."""
    first_centre, first_size = first.float().split(2, dim=-1)
    second_centre, second_size = second.float().split(2, dim=-1)
    first_size, second_size = first_size.clamp(min=0), second_size.clamp(min=0)
    first_low, first_high = first_centre - first_size / 2, first_centre + first_size / 2
    second_low, second_high = second_centre - second_size / 2, second_centre + second_size / 2
    shared = (torch.minimum(first_high, second_high) - torch.maximum(first_low, second_low)).clamp(
        min=0
    )
    around = torch.maximum(first_high, second_high) - torch.minimum(first_low, second_low)
    intersection = _area(shared)
    union = _area(first_size) + _area(second_size) - intersection
    return intersection, union, _area(around)


def _area(size: Tensor) -> Tensor:
    return size[..., 0] * size[..., 1]

"""Contrastive denoising queries: noised objects that the decoder learns to restore."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dset.structures.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from sparse_dset.structures.outputs import DenoisingQueries
from sparse_dset.structures.targets import PaddedTargets


@torch.no_grad()
def make_denoising_queries(
    targets: PaddedTargets,
    num_queries: int,
    num_classes: int,
    num_denoising: int = 100,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> DenoisingQueries | None:
    """Makes the queries of contrastive denoising (DINO, Zhang et al., ICLR 2023).

    A positive's corners move by less than ``box_noise_scale`` x half the object's size, a
    negative's by one to two times that. There are as many groups as fit into ``num_denoising``
    positives; an image with more objects than that gives a random subset, so D is never above
    ``2 * num_denoising``.

    Args:
        targets: the batch's targets.
        num_queries: Q, the matching queries that follow the denoising queries.
        num_classes: K.
        num_denoising: positives per image at most; 0 turns denoising off.
        label_noise_ratio: in [0, 1]; half of this share gets a random label.
        box_noise_scale: at least 0; noise of the boxes, relative to half of their size.
        generator: source of the noise, on the targets' device; None = torch's own.

    Returns:
        The queries, or None when no image has an object or ``num_denoising`` is 0.
    """
    most_objects = int(targets.mask.sum(dim=1).max())
    if most_objects == 0 or num_denoising == 0:
        return None
    per_group = min(most_objects, num_denoising)
    groups = num_denoising // per_group
    chosen = _random_order(targets.mask, generator)[:, :per_group]
    target_index = chosen.repeat(1, 2 * groups)
    query_mask = targets.mask.gather(1, target_index)
    slot = torch.arange(target_index.shape[1], device=target_index.device)
    is_negative = slot % (2 * per_group) >= per_group

    labels = targets.labels.gather(1, target_index)
    labels = _noise_labels(labels, num_classes, label_noise_ratio, generator)
    boxes = targets.boxes.gather(1, target_index[..., None].expand(-1, -1, 4))
    boxes = _noise_boxes(boxes, is_negative, box_noise_scale, generator)
    return DenoisingQueries(
        labels=labels.masked_fill(~query_mask, num_classes),
        boxes_unact=torch.logit(boxes, eps=1e-5),
        attn_mask=_attention_mask(slot // (2 * per_group), num_queries),
        query_mask=query_mask,
        positive=query_mask & ~is_negative,
        target_index=target_index,
    )


def _random_order(mask: Tensor, generator: torch.Generator | None) -> Tensor:
    """Orders each image's objects at random, the real ones first: int64 ``[B, G]``."""
    key = torch.rand(mask.shape, generator=generator, device=mask.device)
    return (key + (~mask).float()).argsort(dim=1)


def _noise_labels(
    labels: Tensor, num_classes: int, ratio: float, generator: torch.Generator | None
) -> Tensor:
    device = labels.device
    flip = torch.rand(labels.shape, generator=generator, device=device) < 0.5 * ratio
    other = torch.randint(num_classes, labels.shape, generator=generator, device=device)
    return torch.where(flip, other, labels)


def _noise_boxes(
    boxes: Tensor, is_negative: Tensor, scale: float, generator: torch.Generator | None
) -> Tensor:
    """Moves the corners of cxcywh ``[B, D, 4]``, clipped to the image; negatives move further."""
    device = boxes.device
    amount = torch.rand(boxes.shape, generator=generator, device=device)
    amount = amount + is_negative[:, None].float()
    sign = 2.0 * torch.randint(2, boxes.shape, generator=generator, device=device) - 1
    half_size = boxes[..., 2:].repeat(1, 1, 2) / 2
    corners = cxcywh_to_xyxy(boxes) + sign * amount * half_size * scale
    corners = corners.clamp(0, 1)
    # A negative's corners may have passed each other.
    low = torch.minimum(corners[..., :2], corners[..., 2:])
    high = torch.maximum(corners[..., :2], corners[..., 2:])
    return xyxy_to_cxcywh(torch.cat([low, high], dim=-1))


def _attention_mask(group: Tensor, num_queries: int) -> Tensor:
    """Hides each group from the other groups and all of them from the matching queries."""
    group = torch.cat([group, group.new_full((num_queries,), -1)])
    return (group[:, None] != group[None, :]) & (group[None, :] >= 0)

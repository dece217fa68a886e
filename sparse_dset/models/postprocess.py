"""From the detector's outputs to detections in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from sparse_dset.checks import check_has_values, check_number, check_tensor

SELECTED = 300
"""Most detections of an image, of all classes together, unless told otherwise: RT-DETR's."""


def select_detections(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    orig_sizes: Tensor | Sequence[tuple[int, int]],
    max_detections: int = SELECTED,
    query_mask: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """Takes the best pairs of query and class of each image (RT-DETR: no suppression).

    Args:
        pred_logits: ``[B, Q, K]``.
        pred_boxes: ``[B, Q, 4]``, cxcywh in [0, 1].
        orig_sizes: (h, w) per image: what boxes are scaled to.
        max_detections: most detections of an image; a query may give several, of different classes.
        query_mask: bool ``[B, Q]``, True = a real query; others are never selected.

    Returns:
        Per image ``scores`` float32 ``[N]`` in [0, 1], best first, ``labels`` int64 ``[N]`` and
        ``boxes`` float32 ``[N, 4]``, xyxy in pixels, with N <= max_detections. Boxes are cut off
        where their image ends, so 0 <= x1 <= x2 <= w and 0 <= y1 <= y2 <= h.

    Raises:
        ValueError: the number of sizes is not B, or ``max_detections`` is below 1.
    """
    check_tensor("pred_logits", pred_logits, "[B, Q, K]", "float")
    check_tensor("pred_boxes", pred_boxes, "[B, Q, 4]", "float", pred_logits.device)
    check_has_values("pred_logits", pred_logits)
    batch_size, num_queries, num_classes = pred_logits.shape
    if pred_boxes.shape != (batch_size, num_queries, 4):
        raise ValueError(
            f"pred_boxes must be [{batch_size}, {num_queries}, 4], got {tuple(pred_boxes.shape)}"
        )
    if query_mask is not None:
        check_tensor("query_mask", query_mask, "[B, Q]", "bool", pred_logits.device)
        if query_mask.shape != pred_logits.shape[:2]:
            raise ValueError(
                f"query_mask must be [{batch_size}, {num_queries}], got {tuple(query_mask.shape)}"
            )
    if isinstance(orig_sizes, Tensor):
        check_tensor("orig_sizes", orig_sizes, "[B, 2]", "real")
        check_has_values("orig_sizes", orig_sizes)
    sizes = torch.as_tensor(orig_sizes, dtype=torch.float32, device=pred_boxes.device)
    if sizes.shape != (batch_size, 2):
        raise ValueError(f"orig_sizes must be {batch_size} pairs (h, w), got {list(sizes.shape)}")
    check_number("max_detections", max_detections, at_least=1, whole=True)
    logits = pred_logits.float()
    if query_mask is not None:
        logits = logits.masked_fill(~query_mask.unsqueeze(-1), -torch.inf)
    count = min(max_detections, num_queries * num_classes)
    best, pairs = logits.flatten(1).topk(count, dim=1)
    queries, labels = pairs // num_classes, pairs % num_classes
    limits = sizes.flip(1).repeat(1, 2)[:, None]
    corners = box_convert(pred_boxes.float(), "cxcywh", "xyxy") * limits
    corners = torch.minimum(corners.clamp(min=0.0), limits)
    boxes = corners.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
    scores, real = best.sigmoid(), best != -torch.inf
    return [
        {"scores": scores[i, real[i]], "labels": labels[i, real[i]], "boxes": boxes[i, real[i]]}
        for i in range(batch_size)
    ]

"""The targets of a batch, checked and padded once to tensors of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparse_dset.checks import check_has_values, check_tensor


@dataclass(frozen=True)
class PaddedTargets:
    """The targets of B images, padded to the largest number G of objects (G may be 0).

    Attributes:
        labels: int64 ``[B, G]`` in 0..K-1; 0 where padded.
        boxes: float32 ``[B, G, 4]``, cxcywh in [0, 1] of the image's own size; 0 where padded.
        mask: bool ``[B, G]``, True = a real object; an image's real objects come first.
        image_ids: the images' names in messages.
    """

    labels: Tensor
    boxes: Tensor
    mask: Tensor
    image_ids: tuple[Any, ...] = ()


def pad_targets(
    targets: Sequence[Mapping[str, Any]], num_classes: int, device: torch.device | str
) -> PaddedTargets:
    """Checks the targets of a batch and pads them.

    Args:
        targets: one mapping per image with ``labels`` int64 [G], ``boxes`` [G, 4] cxcywh in [0, 1]
            and, for messages, ``image_id``.
        num_classes: K; labels must be in 0..K-1.
        device: where the result is to lie.

    Raises:
        ValueError: labels and boxes of different lengths, a label that is no integer in range, or
            a box that is not finite, has no area or is in pixels. The message names the image.
    """
    image_ids = [target.get("image_id", f"{i} of the batch") for i, target in enumerate(targets)]
    for target, image_id in zip(targets, image_ids, strict=True):
        _check_shapes(target, image_id)
    # Padding takes the type of the first image's, which may have no objects.
    labels = pad_sequence([target["labels"].long() for target in targets], batch_first=True)
    boxes = pad_sequence([target["boxes"].float() for target in targets], batch_first=True)
    counts = torch.tensor([len(target["labels"]) for target in targets], device=labels.device)
    mask = torch.arange(labels.shape[1], device=labels.device) < counts[:, None]
    _check_labels(labels, mask, num_classes, image_ids)
    _check_boxes(boxes, mask, image_ids)
    return PaddedTargets(
        labels=labels.to(device),
        boxes=boxes.to(device),
        mask=mask.to(device),
        image_ids=tuple(image_ids),
    )


def _check_shapes(target: Mapping[str, Any], image_id: Any) -> None:
    labels, boxes = target["labels"], target["boxes"]
    check_tensor(f"image {image_id}: labels", labels, "[G]", "integer")
    check_tensor(f"image {image_id}: boxes", boxes, "[G, 4]", "real", labels.device)
    check_has_values(f"image {image_id}: labels", labels)
    if boxes.shape != (len(labels), 4):
        raise ValueError(
            f"image {image_id}: labels must be [G] and boxes [G, 4] with the same G, "
            f"got {tuple(labels.shape)} and {tuple(boxes.shape)}"
        )


def _check_labels(labels: Tensor, mask: Tensor, num_classes: int, image_ids: list[Any]) -> None:
    bad = (mask & ((labels < 0) | (labels >= num_classes))).nonzero()
    if len(bad):
        image, slot = bad[0].tolist()
        raise ValueError(
            f"image {image_ids[image]}: label {int(labels[image, slot])} is out of range for "
            f"{num_classes} classes (0..{num_classes - 1}); set num_classes to the data's"
        )


def _check_boxes(boxes: Tensor, mask: Tensor, image_ids: list[Any]) -> None:
    good = boxes.isfinite().all(dim=-1) & (boxes[..., 2:] > 0).all(dim=-1)
    bad = (mask & ~good).nonzero()
    if len(bad):
        image, slot = bad[0].tolist()
        raise ValueError(
            f"image {image_ids[image]}: box {boxes[image, slot].tolist()} (cxcywh) must be finite "
            "with width and height above 0; drop it when the data are loaded"
        )
    # A clipped box lies within [0, 1]; far beyond it are pixels.
    center, size = boxes[..., :2], boxes[..., 2:]
    outside = (boxes.abs() > 1.5) | ((center - 0.5).abs() >= 0.5 + size / 2).repeat(1, 1, 2)
    bad = (mask & outside.any(dim=-1)).nonzero()
    if len(bad):
        image, slot = bad[0].tolist()
        raise ValueError(
            f"image {image_ids[image]}: box {boxes[image, slot].tolist()} must be cxcywh in "
            "[0, 1]; divide pixels by the image's width and height"
        )

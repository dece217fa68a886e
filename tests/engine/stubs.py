"""A detector of a few hundred weights and a data set of a few drawn images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sparse_dset.data.coco import CocoDetection
from sparse_dset.losses.totals import StepTotals


@dataclass(frozen=True)
class StubOutput:
    """The fields of a detector's output that the engine reads."""

    pred_logits: Tensor
    pred_boxes: Tensor
    query_mask: Tensor
    num_kept: Tensor
    num_tokens: Tensor
    execution: str | None


class StubDetector(nn.Module):
    """Three queries per image, and noise from the global generator in training.

    Attributes:
        calls: (execution, keep_ratio, progress, training) of every call.
    """

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.class_head = nn.Linear(4, 3 * num_classes)
        self.box_head = nn.Linear(4, 12)
        self.num_classes = num_classes
        self.calls: list[tuple] = []

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Mapping[str, Any]] | None = None,
        *,
        padding_mask: Tensor | None = None,
        execution: str | None = None,
        keep_ratio: float | None = None,
        progress: float = 1.0,
    ) -> StubOutput:
        self.calls.append((execution, keep_ratio, progress, self.training))
        pooled = self.backbone(images).mean((2, 3))
        if self.training:
            pooled = pooled + 0.1 * torch.rand(pooled.shape, device=pooled.device)
        logits = self.class_head(pooled).view(len(images), 3, self.num_classes)
        boxes = self.box_head(pooled).view(len(images), 3, 4).sigmoid()
        tokens = torch.tensor([[64, 16, 4]] * len(images))
        share = 1.0 if execution == "dense" else 0.5
        return StubOutput(
            pred_logits=logits,
            pred_boxes=boxes,
            query_mask=torch.ones(logits.shape[:2], dtype=torch.bool),
            num_kept=(tokens * share).long(),
            num_tokens=tokens,
            execution=execution,
        )


def stub_criterion(
    out: StubOutput,
    targets: Sequence[Mapping[str, Any]],
    totals: StepTotals | None = None,
    teacher: None = None,
) -> dict[str, Tensor]:
    """Two losses that count nothing."""
    logits, boxes = out.pred_logits.float(), out.pred_boxes.float()
    wanted = torch.zeros_like(logits)
    errors = [logits.new_zeros(()) * boxes.sum()]
    for i, target in enumerate(targets):
        wanted[i, :, target["labels"]] = 1.0
        errors += [(boxes[i, 0] - box).abs().sum() for box in target["boxes"]]
    return {
        "loss_vfl": F.binary_cross_entropy_with_logits(logits, wanted),
        "loss_bbox": torch.stack(errors).sum(),
    }


def write_coco(folder: Path, num_images: int = 6, *, empty: Sequence[int] = ()) -> Path:
    """Draws images of 32x32 with one square each, but none in those numbered in ``empty``."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(num_images):
        pixels = generator.integers(0, 80, (32, 32, 3), dtype=np.uint8)
        if i not in empty:
            pixels[8:20, 8:20] = 255
            box = {"id": i + 1, "image_id": 100 + i, "category_id": 1 + i % 2}
            annotations.append({**box, "bbox": [8, 8, 12, 12], "area": 144, "iscrowd": 0})
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": 100 + i, "file_name": f"{i}.png", "height": 32, "width": 32})
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def brighten(image: Tensor, target: dict) -> tuple[Tensor, dict]:
    """A random augmentation."""
    return image + torch.randint(0, 40, ()).to(image.dtype), target


def open_coco(
    folder: Path, num_images: int = 6, *, empty: Sequence[int] = (), transforms: Callable = brighten
) -> CocoDetection:
    """The data set that `write_coco` draws."""
    annotations = write_coco(folder, num_images, empty=empty)
    return CocoDetection(folder, annotations, transforms)

"""Small COCO sets on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def coco_config(root: Path, num_images: int = 5) -> dict[str, Any]:
    """Draws a data set and returns its configuration."""
    images = [
        {"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(num_images)
    ]
    for image in images:
        Image.new("RGB", (64, 48), (20 * image["id"], 80, 90)).save(root / image["file_name"])
    boxes = [
        {"id": i + 1, "image_id": i, "category_id": 1 + i % 2, "bbox": [4, 4, 20, 20]}
        for i in range(num_images)
    ]
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return {
        "val": {
            "_target_": "sparse_dset.data.coco.CocoDetection",
            "root": str(root),
            "annotations": str(root / "instances.json"),
            "transforms": {
                "_target_": "sparse_dset.data.transforms.eval_transforms",
                "size": [64, 96],
            },
        }
    }

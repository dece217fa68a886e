"""COCO files and pictures for the tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64


def picture(path: Path, width: int = SIDE, height: int = SIDE, **options: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


def coco_file(
    folder: Path,
    boxes: dict[Any, list[Any]],
    *,
    category_ids: tuple = (1,),
    draw: bool = True,
    **changes: Any,
) -> Path:
    """A file with one image per key of ``boxes``; every box is of the first category."""
    if draw:
        for image_id in boxes:
            picture(folder / f"{image_id}.jpg")
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in boxes
        ],
        "annotations": [
            {"image_id": i, "category_id": category_ids[0], "bbox": bbox}
            for i, listed in boxes.items()
            for bbox in listed
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
    }
    for number, annotation in enumerate(content["annotations"], 1):
        annotation["id"] = number
    path = folder / "annotations.json"
    path.write_text(json.dumps({**content, **changes}))
    return path

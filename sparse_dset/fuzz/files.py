"""Files that people bring: annotations, pictures, checkpoints; and command lines."""

from __future__ import annotations

import functools
import io
import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from sparse_dset.config import build_detector, compose_config, config_dir
from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.images import ImageReader
from sparse_dset.engine.checkpoint import (
    detector_config,
    load_checkpoint,
    load_detector,
    load_weights,
    model_weights,
)
from sparse_dset.fuzz.arguments import floats
from sparse_dset.fuzz.mutate import (
    changed_arguments,
    changed_bytes,
    changed_tensor,
    changed_tree,
)
from sparse_dset.models.detector import Detector

_READER = ImageReader(max_pixels=10_000_000)


def coco_files(rng: Random, folder: Path) -> None:
    """A COCO file that is read, with one of its pictures."""
    content = {
        "info": {"year": 2024},
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in (1, 2, 3)
        ],
        "annotations": [
            {
                "id": i, "image_id": 1 + i % 3, "category_id": 1 + i % 2, "bbox": [1, 2, 8.5, 6],
                "area": 51, "iscrowd": 0, "segmentation": [[1, 2, 9, 2, 9, 8, 1, 8]],
            }
            for i in range(5)
        ],
        "categories": [{"id": 1, "name": "car", "supercategory": "x"}, {"id": 2, "name": "dog"}],
    }  # fmt: skip
    kind = rng.random()
    if kind < 0.7:
        content = changed_tree(rng, content)
    encoding = rng.choice(("utf-8",) * 6 + ("utf-8-sig", "utf-16", "latin-1"))
    data = json.dumps(content, ensure_ascii=rng.random() < 0.5).encode(encoding, "replace")
    if kind > 0.6:
        data = changed_bytes(rng, data)
    if rng.random() < 0.01:
        data = rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"", b"null", b"9" * 10_000))
    path = folder / "annotations.json"
    path.write_bytes(data)
    for i in (1, 2, 3):
        if not (folder / f"{i}.png").is_file():
            Image.new("RGB", (20, 10)).save(folder / f"{i}.png")
    skip = rng.random() < 0.2
    data_set = CocoDetection(folder, path, on_error="skip" if skip else "raise")
    for i in range(min(2, len(data_set))):
        data_set[i]


_FORMATS = (
    ("PNG", ("RGB", "RGBA", "L", "LA", "P", "I;16", "1")), ("JPEG", ("RGB", "L", "CMYK")),
    ("TIFF", ("RGB", "L", "F", "I;16", "CMYK", "1", "RGBA")), ("GIF", ("P", "L")),
    ("WEBP", ("RGB", "RGBA")), ("BMP", ("RGB", "L", "P", "1")), ("PPM", ("RGB", "L", "1")),
)  # fmt: skip


@functools.cache
def _picture(format_name: str, mode: str, frames: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    file = io.BytesIO()
    more = {"save_all": True, "append_images": [picture] * (frames - 1)} if frames > 1 else {}
    picture.save(file, format_name, **more)
    return file.getvalue()


def images(rng: Random, folder: Path) -> None:
    """A picture file that is read."""
    format_name, modes = rng.choice(_FORMATS)
    several = format_name in ("GIF", "TIFF", "WEBP") and rng.random() < 0.2
    data = changed_bytes(rng, _picture(format_name, rng.choice(modes), 3 if several else 1))
    path = folder / "picture"
    path.write_bytes(data)
    size = rng.choice((None, None, (9, 13), (13, 9)))
    _READER.read(path, size)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)


@functools.cache
def _nano_config() -> dict[str, Any]:
    return compose_config("detector", ["model=nano"])


def _content(rng: Random) -> dict[str, Any]:
    config = _nano_config() if rng.random() < 0.3 else {"model": {"num_classes": 3, "pruner": {}}}
    state = _Small().state_dict()
    content = {"model": dict(state), "config": config, "step": 3, "metrics": {"AP": 0.5}}
    if rng.random() < 0.5:
        content["ema"] = {"model": dict(state), "updates": 7}
    if rng.random() < 0.2:
        content["half"] = True
    return content


def checkpoints(rng: Random, folder: Path) -> None:
    """A checkpoint file that is read and used."""
    content: Any = _content(rng)
    kind = rng.random()
    if kind < 0.6:
        content = changed_tree(rng, content)
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=rng.random() < 0.8)
    data = file.getvalue()
    if kind > 0.5:
        data = changed_bytes(rng, data)
    if kind > 0.95:
        data = rng.choice(
            (pickle.dumps({"model": object}), pickle.dumps([1, Path("x")]), b"weights: no\n", b"")
        )
    path = folder / "checkpoint.pt"
    path.write_bytes(data)
    checkpoint = load_checkpoint(path)
    detector_config(checkpoint, path)
    load_weights(_Small(), model_weights(checkpoint))
    if rng.random() < 0.3:
        load_detector(path)


@functools.cache
def _detector() -> Detector:
    torch.manual_seed(0)
    small = ["model.image_size=[64,64]", "model.decoder.num_queries=5"]
    return build_detector("nano", 3, small, pretrained=False).eval()


def predict(rng: Random, folder: Path) -> None:
    """Tensors and settings that a detector is given."""
    kind = rng.random()
    size = rng.randint(1, 40), rng.randint(1, 40)
    picture: Any = floats(rng, 3, *size).sigmoid()
    if kind < 0.3:
        picture = (picture * 255).to(torch.uint8)
    elif kind < 0.4:
        picture = Image.new(rng.choice(("L", "RGB", "RGBA", "F", "I", "P", "CMYK")), size)
    elif kind < 0.8:
        picture = changed_tensor(rng, picture)
    options = {"threshold": 0.3, "batch_size": 2, "execution": "sparse", "keep_ratio": 0.5}
    _detector().predict([picture], **changed_arguments(rng, options))


_TEXTS = (
    "model=nano", "model=r18", "model=", "=", "a=b", "model.num_classes=3", "pruner.keep_ratio=2",
    "model.image_size=[64,64]", "pruner.keep_ratio=0.5", "ops=x", "~model", "+x=1", "++y.z=${oc",
    "losses=default", "x", "model.num_classes=nan", "model.num_classes=1,2", "'", '"', "[", "{a:1}",
    "optim=adamw_cosine", "train.epochs=-1", "data=coco", "data.root=${data.root}", "hydra.run=1",
    "source=photo (1).png", "checkpoint=ä b.pt", "execution=sparse", "threshold=1e999",
)  # fmt: skip


@functools.cache
def _script_names() -> list[str]:
    return sorted(path.stem for path in config_dir().glob("*.yaml"))


def configs(rng: Random, folder: Path) -> None:
    """Words of a command line."""
    words = [rng.choice(_TEXTS) for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.7 and words:
        mixed = changed_bytes(rng, rng.choice(words).encode()).decode("utf-8", "replace")
        words[rng.randrange(len(words))] = mixed
    compose_config(rng.choice(_script_names()), words)

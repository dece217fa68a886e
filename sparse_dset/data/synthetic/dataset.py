"""Writes scenes as a COCO data set."""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sparse_dset.data.synthetic.scene import render_scene
from sparse_dset.data.synthetic.solids import CLASSES

VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_KEYS = {"version", "classes", "splits", "height", "width", "seed"}


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of one scene, so that a split does not depend on the size of another."""
    entropy = [seed, zlib.crc32(split.encode()), index]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def write_dataset(
    root: str | Path,
    splits: Mapping[str, int] | None = None,
    *,
    height: int = 384,
    width: int = 640,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Writes ``images/*.jpg`` and ``annotations/instances_<split>.json`` (COCO).

    The set is drawn in a temporary folder beside ``root`` and moved in place when it is whole, so
    ``root`` never holds a part of it. A set with the same parameters that is there already is kept;
    one with other parameters is replaced.

    Args:
        root: the folder of the set.
        splits: images per split; by default 320 in ``train`` and 80 in ``val``.
        height: image height in pixels.
        width: image width in pixels.
        seed: a number >= 0.
        progress: whether to show a progress bar.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: if a split is empty, or the size or the seed is not valid.
        FileExistsError: if ``root`` holds anything that this function did not write.
    """
    root = Path(root).absolute()
    splits = {"train": 320, "val": 80} if splits is None else dict(splits)
    for split, count in splits.items():
        if count < 1:
            raise ValueError(f"split {split!r} must have at least 1 image, not {count}")
    manifest = {
        "version": VERSION,
        "classes": list(CLASSES),
        "splits": splits,
        "height": height,
        "width": width,
        "seed": seed,
    }
    if is_complete(root, manifest):
        return root
    foreign = foreign_file(root)
    if foreign is not None:
        raise FileExistsError(
            f"{foreign} is not of a synthetic set, and the whole of {root} would be replaced; name "
            "another folder or empty it"
        )
    with tqdm(total=sum(splits.values()), desc="scenes", disable=not progress) as bar:
        _write_at_once(root, manifest, bar)
    return root


def _write_at_once(root: Path, manifest: Mapping[str, Any], bar: tqdm[Any]) -> None:
    """Draws a set beside a folder, and puts it in the folder's place when it is whole."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
        folder = Path(temporary) / "set"
        (folder / "images").mkdir(parents=True)
        (folder / "annotations").mkdir()
        for split, count in manifest["splits"].items():
            write_split(folder, split, count, manifest, bar)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
        if not is_complete(root, manifest):  # another process may have been faster
            shutil.rmtree(root, ignore_errors=True)
            folder.replace(root)


def is_complete(root: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a whole set with these parameters is in a folder."""
    if read_manifest(root) != manifest:
        return False
    return all((root / name).is_file() for name in file_names(manifest))


def foreign_file(root: Path) -> Path | None:
    """Finds a file in a folder that is none of the set whose manifest lies there."""
    manifest = read_manifest(root)
    known = set() if manifest is None else file_names(manifest)
    files = (path for path in sorted(root.rglob("*")) if not path.is_dir())
    return next((path for path in files if path.relative_to(root).as_posix() not in known), None)


def read_manifest(root: Path) -> dict[str, Any] | None:
    """Reads what describes a set; None where there is none, or something else of that name."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    named = isinstance(manifest, dict) and set(manifest) == MANIFEST_KEYS
    return manifest if named and isinstance(manifest["splits"], dict) else None


def file_names(manifest: Mapping[str, Any]) -> set[str]:
    """Names all files of a set, relative to its folder."""
    return {
        MANIFEST,
        *(f"annotations/instances_{split}.json" for split in manifest["splits"]),
        *(
            f"images/{image_name(split, index)}"
            for split, count in manifest["splits"].items()
            for index in range(count)
        ),
    }


def image_name(split: str, index: int) -> str:
    """The file name of an image."""
    return f"{split}_{index:05d}.jpg"


def write_split(
    folder: Path, split: str, count: int, manifest: Mapping[str, Any], bar: tqdm[Any]
) -> None:
    """Draws the images of a split and writes them and their annotations."""
    height, width = manifest["height"], manifest["width"]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = render_scene(scene_seed(manifest["seed"], split, index), height, width)
        name = image_name(split, index)
        Image.fromarray(scene.image).save(folder / "images" / name, quality=92)
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for box, label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        bar.update()
    content = {
        "info": {"description": f"synthetic road scenes, {split}", "version": str(VERSION)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))

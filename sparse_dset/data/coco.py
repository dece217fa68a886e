"""Detection data sets in COCO's format, checked when they are loaded."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from sparse_dset.data.images import ImageReader, ImageReadError, read_size
from sparse_dset.paths import expand_home

# Sides below this many pixels vanish when float32 corners are subtracted.
_MIN_SIDE = 0.01


class Target(TypedDict):
    """What is known about one image.

    Keys:
        labels: int64 ``[G]`` in 0..K-1.
        boxes: float32 ``[G, 4]``, cxcywh in [0, 1] of the image's own (unpadded) size.
        image_id: the data set's id.
        size: (h, w) of the image as it enters the model, without padding.
        orig_size: (h, w) of the file.
    """

    labels: Tensor
    boxes: Tensor
    image_id: int
    size: tuple[int, int]
    orig_size: tuple[int, int]


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set and the boxes in it, in pixels of the file.

    Attributes:
        image_id: the id in the annotation file.
        path: the picture.
        size: (h, w).
        boxes: float64 ``[G, 4]`` xyxy, inside the image and with an area above 0.
        labels: int64 ``[G]`` in 0..K-1.
        crowd: bool ``[G]``, True = a group of objects: neither trained on nor counted as missed.
        areas: float64 ``[G]``, of the object where the file gives it, else of the box.
    """

    image_id: int
    path: Path
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor


class CocoDetection(Dataset[tuple[Tensor, Target]]):
    """Images and boxes of a COCO annotation file.

    Category ids are mapped to labels 0..K-1 in the order of the ids. Images without boxes are
    kept. Boxes are clipped to their image; those that are not finite or have no area are dropped
    with a warning. ``area``, ``iscrowd``, ``info`` and the images' sizes may be absent.

    Args:
        root: the folder that the images' file names start from.
        annotations: the json file.
        transforms: takes and returns ``(image, target)``, where the image is a uint8
            ``tv_tensors.Image`` and the target holds ``boxes`` (``tv_tensors.BoundingBoxes``,
            xyxy pixels), ``labels``, ``image_id`` and ``orig_size``.
        num_classes: the model's number of classes, at least K; default K.
        cache: decode every picture now and keep it in memory (3 bytes a pixel), for machines
            whose processors are slower than the training.
        on_error: what becomes of a picture that cannot be read: ``"raise"`` when it is asked for,
            or ``"skip"``: every picture is decoded once now, and those that fail are left out,
            listed in ``skipped`` and warned of.
        reader: how pictures are read, e.g. ``ImageReader(max_pixels=...)``.

    Attributes:
        records: the images, in the file's order, without those skipped.
        category_ids: the file's category id of each label.
        class_names: the name of each label, unique.
        num_classes: the number of classes a model needs.
        skipped: why a picture was skipped, by image id.

    Raises:
        ValueError: the file is not a COCO detection file, or contradicts itself (ids that repeat,
            are not numbers or refer to nothing), or has more categories than ``num_classes``.
        ImageReadError: a picture cannot be read; names the file and the image id.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path,
        transforms: Callable[[Tensor, dict], tuple[Tensor, dict]] | None = None,
        *,
        num_classes: int | None = None,
        cache: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        reader: ImageReader = ImageReader(),  # noqa: B008  (frozen)
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.root = Path(expand_home(root))
        self.annotations = Path(expand_home(annotations))
        self.transforms = transforms
        self.reader = reader
        self._told: set[str] = set()
        self.skipped: dict[int, str] = {}
        content = _read_json(self.annotations)
        self.category_ids, self.class_names = _categories(content["categories"], self.annotations)
        self.num_classes = self._checked_num_classes(num_classes)
        self.records = self._read_records(content, skip=on_error == "skip")
        self._images: list[Tensor] | None = None
        if cache or on_error == "skip":
            images = self._decode_all(keep=cache, skip=on_error == "skip")
            self._images = images if cache else None
        if self.skipped:
            warnings.warn(
                f"{self.annotations}: {len(self.skipped)} images are skipped because they cannot "
                f"be read: {_listed(self.skipped)}",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Returns the transformed image, float32 ``[3, H, W]`` in [0, 1], and its target."""
        return self.prepare(*self.load(index))

    @property
    def image_ids(self) -> list[int]:
        """The ids of the images, in order."""
        return [record.image_id for record in self.records]

    def load(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        """Returns image and target as the file has them: what ``transforms`` is given."""
        record = self.records[index]
        image = self._decode(record) if self._images is None else self._images[index]
        boxes = record.boxes[~record.crowd].float()
        return tv_tensors.Image(image), {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=record.size),
            "labels": record.labels[~record.crowd],
            "image_id": record.image_id,
            "orig_size": record.size,
        }

    def prepare(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, Target]:
        """Transforms what ``load`` returned and brings it to the form the model takes."""
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        height, width = image.shape[-2:]
        boxes = target["boxes"].as_subclass(Tensor) / torch.tensor([width, height] * 2)
        boxes = box_convert(boxes.clamp(0, 1), "xyxy", "cxcywh")
        seen = (boxes[:, 2:] > 0).all(dim=1)
        pixels = F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
        return pixels.contiguous(), Target(
            labels=target["labels"][seen],
            boxes=boxes[seen],
            image_id=target["image_id"],
            size=(height, width),
            orig_size=target["orig_size"],
        )

    def _checked_num_classes(self, num_classes: int | None) -> int:
        found = len(self.category_ids)
        if num_classes is not None and num_classes < found:
            raise ValueError(
                f"{self.annotations} has {found} categories, but num_classes={num_classes}; "
                f"set num_classes to {found} or more"
            )
        return found if num_classes is None else num_classes

    def _read_records(self, content: Mapping[str, Any], skip: bool) -> list[ImageRecord]:
        labels = {category_id: label for label, category_id in enumerate(self.category_ids)}
        by_image = _annotations_by_image(content, labels, self.annotations)
        records = []
        dropped: Counter[int] = Counter()
        for image_id, entry in _images_by_id(content, self.annotations).items():
            path = self.root / str(entry["file_name"])
            try:
                size = _size(entry) or read_size(path)
            except ImageReadError as error:
                if not skip:
                    raise ImageReadError(f"image {image_id}: {error}") from error
                self.skipped[image_id] = str(error)
                continue
            record, bad = _record(image_id, path, size, by_image.get(image_id, []), labels)
            records.append(record)
            dropped[image_id] += bad
        _warn_of(dropped, records, self.annotations)
        return records

    def _decode(self, record: ImageRecord) -> Tensor:
        try:
            image, notices = self.reader.decode(record.path, record.size)
        except ImageReadError as error:
            raise ImageReadError(f"image {record.image_id}: {error}") from error
        for kind, text in notices:
            if kind not in self._told:  # a whole set may be so
                self._told.add(kind)
                warnings.warn(
                    f"image {record.image_id}: {text}. Further pictures of this data set that are "
                    "so are not told of",
                    stacklevel=2,
                )
        return image

    def _decode_all(self, keep: bool, skip: bool) -> list[Tensor]:
        def attempt(record: ImageRecord) -> Tensor | ImageReadError:
            try:
                image = self._decode(record)
            except ImageReadError as error:
                return error
            return image if keep else image.new_empty(0)

        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding Python's lock
            results = list(pool.map(attempt, self.records))
        records, images = [], []
        for record, result in zip(self.records, results, strict=True):
            if isinstance(result, Tensor):
                records.append(record)
                images.append(result)
            elif skip:
                self.skipped[record.image_id] = str(result)
            else:
                raise result
        if not records:
            raise ImageReadError(f"{self.annotations}: no picture can be read: {self.skipped}")
        self.records = records
        return images


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a json file: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f"{path} is not a COCO detection file: it needs an object with the lists "
                f"'images', 'annotations' and 'categories', and {key!r} is missing"
            )
        if not all(isinstance(entry, dict) for entry in content[key]):
            raise ValueError(f"{path} is not a COCO detection file: {key!r} must list objects")
    return content


def _categories(
    entries: Sequence[Mapping[str, Any]], path: Path
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The category ids in order and their names, made unique by the id where they repeat."""
    if not entries:
        raise ValueError(f"{path} has no categories")
    names = {
        category_id: str(entry.get("name", category_id))
        for category_id, entry in _unique(entries, "category", path)
    }
    repeats = Counter(names.values())
    ids = tuple(sorted(names))
    return ids, tuple(
        names[i] if repeats[names[i]] == 1 else f"{names[i]} (category {i})" for i in ids
    )


def _images_by_id(content: Mapping[str, Any], path: Path) -> dict[int, Mapping[str, Any]]:
    if not content["images"]:
        raise ValueError(f"{path} has no images")
    entries = dict(_unique(content["images"], "image", path))
    for image_id, entry in entries.items():
        if not entry.get("file_name"):
            raise ValueError(f"{path}: image {image_id} has no file_name")
    return entries


def _annotations_by_image(
    content: Mapping[str, Any], labels: Mapping[int, int], path: Path
) -> dict[int, list[Mapping[str, Any]]]:
    known = {image_id for image_id, _ in _unique(content["images"], "image", path)}
    with_id = [entry for entry in content["annotations"] if entry.get("id") is not None]
    _unique(with_id, "annotation", path)  # only to find ids that repeat
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for entry in content["annotations"]:
        name = f"{path}: annotation {entry.get('id', '')}".rstrip()
        image_id = _integer(entry.get("image_id"), f"{name}: image_id")
        category_id = _integer(entry.get("category_id"), f"{name}: category_id")
        if image_id not in known:
            raise ValueError(f"{name} is of image {image_id}, which the file does not list")
        if category_id not in labels:
            raise ValueError(
                f"{name} (image {image_id}) is of category {category_id}, which the file does not "
                f"list; its categories are {_listed(labels)}"
            )
        by_image.setdefault(image_id, []).append({**entry, "category_id": category_id})
    return by_image


def _record(
    image_id: int,
    path: Path,
    size: tuple[int, int],
    entries: Sequence[Mapping[str, Any]],
    labels: Mapping[int, int],
) -> tuple[ImageRecord, int]:
    """The record of an image, and how many of its annotations have no usable box."""
    boxes = [_clipped_box(entry.get("bbox"), size) for entry in entries]
    good = [(entry, box) for entry, box in zip(entries, boxes, strict=True) if box is not None]
    record = ImageRecord(
        image_id=image_id,
        path=path,
        size=size,
        boxes=torch.tensor([box for _, box in good], dtype=torch.float64).reshape(-1, 4),
        labels=torch.tensor([labels[e["category_id"]] for e, _ in good], dtype=torch.int64),
        crowd=torch.tensor([_is_crowd(e) for e, _ in good], dtype=torch.bool),
        areas=torch.tensor([_area(e.get("area"), box) for e, box in good], dtype=torch.float64),
    )
    return record, len(entries) - len(good)


def _clipped_box(bbox: Any, size: tuple[int, int]) -> list[float] | None:
    """COCO's (x, y, w, h) as corners inside an image of (h, w); None where nothing is left."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_finite, bbox)):
        return None
    x, y, width, height = bbox
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + width, float(size[1])), min(y + height, float(size[0]))
    return [x1, y1, x2, y2] if min(x2 - x1, y2 - y1) >= _MIN_SIDE else None


def _is_crowd(entry: Mapping[str, Any]) -> bool:
    value = entry.get("iscrowd")
    if value in (None, False, True, 0, 1, "0", "1"):
        return bool(int(value or 0))
    name = f"annotation {entry.get('id', '')}".rstrip()
    raise ValueError(f"{name} (image {entry['image_id']}): iscrowd must be 0 or 1, got {value!r}")


def _area(area: Any, box: Sequence[float]) -> float:
    if _is_finite(area) and area > 0:
        return float(area)
    return (box[2] - box[0]) * (box[3] - box[1])


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if not height or not width:
        return None
    return (
        _integer(height, f"image {entry['id']}: height"),
        _integer(width, f"image {entry['id']}: width"),
    )


def _unique(
    entries: Iterable[Mapping[str, Any]], kind: str, path: Path
) -> list[tuple[int, Mapping[str, Any]]]:
    """The entries with their ids as integers.

    Raises:
        ValueError: an id is missing, is not a number, or repeats.
    """
    pairs = [(_integer(entry.get("id"), f"{path}: {kind} id"), entry) for entry in entries]
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {kind} ids must be unique, but repeat: {_listed(repeated)}")
    return pairs


def _integer(value: Any, name: str) -> int:
    """A whole number, also when it is written as text or as 1.0."""
    try:
        number = int(value)
        if not isinstance(value, bool) and (isinstance(value, str) or number == value):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be a whole number, got {value!r}")


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # not so of NaN, nor of larger integers


def _warn_of(dropped: Counter[int], records: Sequence[ImageRecord], path: Path) -> None:
    count = dropped.total()
    if count:
        warnings.warn(
            f"{path}: {count} boxes are dropped because they are not four finite numbers, have no "
            f"area or lie outside of their image; image ids: {_listed(+dropped)}",
            stacklevel=4,
        )
    if not any(len(record.boxes) for record in records):
        warnings.warn(
            f"{path} has no boxes at all: a model can only learn to find nothing, and AP has no "
            "value",
            stacklevel=4,
        )


def _listed(values: Iterable[Any], most: int = 20) -> str:
    texts = [str(value) for value in values]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more

"""COCO's annotation files, read into records and checked.

Ids may be whole numbers, also as text or as 1.0; keys may stand in any order, and others may stand
beside them; the file may be in any encoding that json allows, with or without a mark of its order.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_dset.data.boxes import BoxError, clipped_box, number, raw_box
from sparse_dset.data.units import WrittenBox, check_units

_LARGEST_ID = 2**63 - 1  # of an int64


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


def read_annotations(path: Path) -> dict[str, Any]:
    """Reads a file and checks that it has COCO's form.

    Raises:
        ValueError: it is not json, a key repeats in an object, or a list is missing.
    """
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        raise ValueError(f"{path} is not a json file: it is compressed (gzip); unpack it")
    try:
        content = json.loads(data, object_pairs_hook=_object)  # finds UTF-8, UTF-16 and UTF-32
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a json file: {error}; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of json; of a key that stands twice, json itself would keep the last in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"keys repeat in one object: {listed(map(repr, repeated))}")
    return content


def read_categories(
    content: Mapping[str, Any], path: Path, drop_root: bool = False
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns the category ids in order and their names, made unique by the id where they repeat.

    Args:
        content: of the file.
        path: of the file, for messages.
        drop_root: leave out a category that is the supercategory of all others; without it, such
            a category is warned of where it has no objects.

    Raises:
        ValueError: there are no categories, ids repeat or are no numbers, or the category that is
            to be left out has objects.
    """
    if not content["categories"]:
        raise ValueError(f"{path} has no categories")
    entries = dict(_unique(content["categories"], "category", path))
    root = _root_category(entries)
    if root is not None:
        objects = sum(_is_id(a.get("category_id"), root) for a in content["annotations"])
        name = f"category {root} ({entries[root].get('name')!r})"
        if drop_root and objects:
            raise ValueError(
                f"{path}: {name} is the supercategory of the others and has {objects} objects, so "
                "that it can't be dropped; set drop_root_category to false"
            )
        if drop_root:
            del entries[root]
        elif not objects and content["annotations"]:
            warnings.warn(
                f"{path}: {name} has no objects and is the supercategory of the others: a class of "
                "which nothing will be found. data.drop_root_category=true on the command line, or "
                "CocoDetection(drop_root_category=True), leaves it out",
                stacklevel=3,
            )
    names = {
        category_id: str(category_id if entry.get("name") is None else entry["name"])
        for category_id, entry in entries.items()
    }
    for category_id, name in names.items():
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(
                f"{path}: the name of category {category_id} is no text: {name!r} has half of a "
                "pair of UTF-16 (a surrogate) in it"
            )
    repeats = Counter(names.values())
    ids = tuple(sorted(names))
    return ids, tuple(
        names[i] if repeats[names[i]] == 1 else f"{names[i]} (category {i})" for i in ids
    )


def _root_category(entries: Mapping[int, Mapping[str, Any]]) -> int | None:
    """The id of the one category that is the supercategory of all others, if there is one."""
    roots = [
        root
        for root, entry in entries.items()
        if len(entries) > 1
        and entry.get("name")
        and all(e.get("supercategory") == entry["name"] for i, e in entries.items() if i != root)
    ]
    return roots[0] if len(roots) == 1 else None


def _is_id(value: Any, wanted: int) -> bool:
    try:
        return _integer(value, "id") == wanted
    except ValueError:
        return False  # which is told of where the annotations are read


def read_images(content: Mapping[str, Any], path: Path) -> dict[int, Mapping[str, Any]]:
    """Returns the entries of the images by their ids.

    Raises:
        ValueError: there are none, ids repeat or are no numbers, or a file name is missing.
    """
    if not content["images"]:
        raise ValueError(f"{path} has no images")
    entries = dict(_unique(content["images"], "image", path))
    for image_id, entry in entries.items():
        if not entry.get("file_name"):
            raise ValueError(f"{path}: image {image_id} has no file_name")
    return entries


def build_records(
    content: Mapping[str, Any],
    images: Mapping[int, tuple[Path, tuple[int, int]]],
    category_ids: Sequence[int],
    path: Path,
) -> list[ImageRecord]:
    """Returns the records of images, with all that their annotations tell; warns of what is odd.

    Args:
        content: of the file.
        images: path and (h, w) by image id.
        category_ids: of labels 0..K-1.
        path: of the file, for messages.

    Raises:
        ValueError: annotations contradict the file or one another, or none has a usable box.
    """
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    by_image = _annotations_by_image(content, labels, path)
    found = {i: [_found(e, images[i][1]) for e in by_image.get(i, [])] for i in images}
    written = [
        WrittenBox(one.raw, images[image_id][1], image_id)
        for image_id, group in found.items()
        for one in group
        if one.raw is not None
    ]
    check_units(written, path)
    _tell_of_dropped(found, path)
    return [
        _record(image_id, *images[image_id], group, labels) for image_id, group in found.items()
    ]


class _Found(NamedTuple):
    """An annotation, its box as it is written and inside of its image, or why it has none."""

    entry: Mapping[str, Any]
    raw: list[float] | None
    box: list[float] | None
    reason: str


def _found(entry: Mapping[str, Any], size: tuple[int, int]) -> _Found:
    raw = box = None
    reason = ""
    try:
        raw = raw_box(entry)
        box = clipped_box(raw, size)
    except BoxError as error:
        reason = str(error)
    return _Found(entry, raw, box, reason)


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
                f"list; its categories are {listed(labels)}"
            )
        by_image.setdefault(image_id, []).append({**entry, "category_id": category_id})
    return by_image


def _record(
    image_id: int,
    path: Path,
    size: tuple[int, int],
    found: Sequence[_Found],
    labels: Mapping[int, int],
) -> ImageRecord:
    good = [(one.entry, one.box) for one in found if one.box is not None]
    return ImageRecord(
        image_id=image_id,
        path=path,
        size=size,
        boxes=torch.tensor([box for _, box in good], dtype=torch.float64).reshape(-1, 4),
        labels=torch.tensor([labels[e["category_id"]] for e, _ in good], dtype=torch.int64),
        crowd=torch.tensor([_is_crowd(e) for e, _ in good], dtype=torch.bool),
        areas=torch.tensor([_area(e.get("area"), box) for e, box in good], dtype=torch.float64),
    )


def _is_crowd(entry: Mapping[str, Any]) -> bool:
    value = entry.get("iscrowd")
    if value in (None, False, True, 0, 1, "0", "1"):
        return bool(int(value or 0))
    name = f"annotation {entry.get('id', '')}".rstrip()
    raise ValueError(f"{name} (image {entry['image_id']}): iscrowd must be 0 or 1, got {value!r}")


def _area(area: Any, box: Sequence[float]) -> float:
    try:
        given = number(area)
    except BoxError:
        given = 0.0
    return given if given > 0 else (box[2] - box[0]) * (box[3] - box[1])


def read_stated_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns (h, w) of an image's entry, None where it gives none (or 0).

    Raises:
        ValueError: they are no whole numbers above 0.
    """
    sides = []
    for key in ("height", "width"):
        if not entry.get(key):
            return None
        side = _integer(entry[key], f"image {entry['id']}: {key}")
        if side < 1:
            raise ValueError(f"image {entry['id']}: {key} must be at least 1, got {side}")
        sides.append(side)
    return sides[0], sides[1]


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
        raise ValueError(f"{path}: {kind} ids must be unique, but repeat: {listed(repeated)}")
    return pairs


def _integer(value: Any, name: str) -> int:
    """A whole number, also when it is written as text or as 1.0."""
    try:
        given = float(value) if isinstance(value, str) and "." in value else value
        whole = int(given)
        fits = (isinstance(value, str) and given is value) or whole == given
        fits = fits and not isinstance(value, bool) and abs(whole) <= _LARGEST_ID
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        shown = repr(value) if len(repr(value)) < 100 else f"{repr(value)[:100]}..."
        raise ValueError(f"{name} must be a whole number of at most 64 bits, got {shown}")
    return whole


def _tell_of_dropped(found: Mapping[int, Sequence[_Found]], path: Path) -> None:
    """Counts the boxes that are dropped by reason, in one warning.

    Raises:
        ValueError: there are boxes, and all of them are dropped.
    """
    total = sum(map(len, found.values()))
    reasons = Counter(one.reason for group in found.values() for one in group if one.reason)
    count = reasons.total()
    if not total:
        warnings.warn(
            f"{path} has no boxes at all: a model can only learn to find nothing, and AP has no "
            "value",
            stacklevel=5,
        )
    if not count:
        return
    why = ", ".join(f"{times} {reason}" for reason, times in reasons.most_common())
    ids = listed(i for i, group in found.items() if any(one.reason for one in group))
    if count == total:
        raise ValueError(f"{path}: none of its {total} boxes can be used: {why}; image ids: {ids}")
    warnings.warn(f"{path}: {count} boxes are dropped: {why}; image ids: {ids}", stacklevel=5)


def listed(values: Iterable[Any], most: int = 20) -> str:
    """Returns the first values, with how many more there are."""
    texts = [str(value) for value in values]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more

"""The boxes of COCO annotations as numbers, from whatever the annotation says of its object."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

# Sides below this many pixels vanish when float32 corners are subtracted.
MIN_SIDE = 0.01

MISSING = "without a box, and without a polygon or mask to take one from"
NOT_NUMBERS = "not four finite numbers"
NO_AREA = "without an area"
OUTSIDE = "outside of their image"


class BoxError(ValueError):
    """An annotation has no usable box; the message is the reason, one of those above."""


def raw_box(entry: Mapping[str, Any]) -> list[float]:
    """Returns (x, y, width, height) of an annotation as it is written.

    Numbers may be written as text. Where ``bbox`` is missing, it is that of ``segmentation``.

    Raises:
        BoxError: there is none, or it is not four finite numbers.
    """
    bbox = entry.get("bbox")
    if bbox is None or bbox == [] or bbox == "":
        return _box_of_segmentation(entry.get("segmentation"))
    if isinstance(bbox, str):  # "4, 5, 16, 16", in brackets or not
        bbox = re.split(r"[\s,;]+", bbox.strip("[]() \t\n"))
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise BoxError(NOT_NUMBERS)
    return [number(value) for value in bbox]


def clipped_box(box: list[float], size: tuple[int, int]) -> list[float]:
    """Returns (x, y, width, height) as corners (x1, y1, x2, y2) inside an image of (h, w).

    Raises:
        BoxError: nothing is left.
    """
    x, y, width, height = box
    if min(width, height) <= 0:
        raise BoxError(NO_AREA)
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + width, float(size[1])), min(y + height, float(size[0]))
    if min(x2 - x1, y2 - y1) < MIN_SIDE:
        raise BoxError(NO_AREA if min(width, height) < MIN_SIDE else OUTSIDE)
    return [x1, y1, x2, y2]


def number(value: Any) -> float:
    """Returns a finite number, also one that is written as text.

    Raises:
        BoxError: it is none.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BoxError(NOT_NUMBERS) from None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and abs(value) <= sys.float_info.max):  # not so of NaN and huge integers
        raise BoxError(NOT_NUMBERS)
    return float(value)


def _box_of_segmentation(segmentation: Any) -> list[float]:
    if isinstance(segmentation, Mapping):
        return _box_of_mask(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        raise BoxError(MISSING)
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    if not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons):
        raise BoxError(MISSING)
    points = np.array([number(value) for p in polygons for value in p]).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _box_of_mask(mask: Mapping[str, Any]) -> list[float]:
    """The box around a mask in COCO's run-length encoding: runs of 0 and 1 down the columns.

    It is read here because pycocotools reads beyond the end of text that is cut off.
    """
    try:
        height, width = (int(number(side)) for side in mask["size"])
        counts = mask["counts"]
        runs = _decoded_runs(counts) if isinstance(counts, str) else [int(c) for c in counts]
        sound = min(height, width) >= 1 and min(runs) >= 0 and sum(runs) == height * width
        if not sound or height * width >= 2**62:  # of which an int64 can count the pixels
            raise BoxError(MISSING)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError):
        raise BoxError(MISSING) from None
    ends = np.cumsum(np.array(runs, dtype=np.int64))
    first, last = ends[:-1:2], ends[1::2] - 1  # of the runs of 1
    first, last = first[first <= last], last[first <= last]
    if not len(first):
        raise BoxError(NO_AREA)
    one_column = first // height == last // height
    top = int(np.where(one_column, first % height, 0).min())
    bottom = int(np.where(one_column, last % height, height - 1).max())
    left, right = int(first[0] // height), int(last[-1] // height)
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


def _decoded_runs(text: str) -> list[int]:
    """The lengths of the runs from COCO's compressed text: 5 bits and a flag of more a letter."""
    runs: list[int] = []
    position = 0
    while position < len(text):
        value = shift = 0
        more = True
        while more:
            bits = ord(text[position]) - 48
            if not 0 <= bits < 64 or shift > 60:
                raise ValueError("no letter of a compressed mask")
            value |= (bits & 0x1F) << shift
            shift += 5
            more = bool(bits & 0x20)
            position += 1
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs

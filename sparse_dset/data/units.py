"""Finds boxes that are not written as COCO has them: [x, y, width, height] in pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_NEARLY_ALL = 0.95
# Corners and centres may end a pixel beyond the edge, by rounding.
_SLACK = 1.0
_CORNERS = "corners [x1, y1, x2, y2]"
_CENTRES = "centres [centre x, centre y, width, height]"


class WrittenBox(NamedTuple):
    """A box (x, y, width, height) as the file has it, its image's (h, w), and the image's id."""

    box: Sequence[float]
    size: tuple[int, int]
    image_id: int


class _Finding(NamedTuple):
    """Which boxes are odd, bool ``[N]``, in what way, and what they probably are."""

    odd: Any
    way: str
    likely: str
    hopeless: bool = False


def check_units(written: Sequence[WrittenBox], path: Path) -> None:
    """Warns where the boxes of a data set are probably not [x, y, width, height] in pixels.

    Objects at borders, tiny ones and few of them are no reason: a data set is told of where nearly
    all of its boxes lie in 0..1, at least half of them are below a pixel, or their images' edges
    cut off much of many, in a way that another reading of the numbers explains.

    Args:
        written: the boxes.
        path: the annotation file, for the message.

    Raises:
        ValueError: all boxes lie within one pixel, so that nothing is left to learn from.
    """
    written = [one for one in written if min(one.box[2:]) > 0]
    if not written:
        return
    array = np.array([one.box for one in written], dtype=np.float64)
    limits = np.array([one.size[::-1] for one in written], dtype=np.float64)
    finding = _fractions(array) or _cut(array, limits) or _below_a_pixel(array)
    if finding is None:
        return
    first = written[int(np.flatnonzero(finding.odd)[0])]
    count = int(finding.odd.sum())
    example = ", ".join(f"{value:g}" for value in first.box)
    message = (
        f"{path}: {count} of {len(written)} boxes ({count / len(written):.0%}) {finding.way}, e.g. "
        f"[{example}] in image {first.image_id} of {first.size[1]}x{first.size[0]} (width x "
        f"height); they are probably {finding.likely}, where COCO has [x, y, width, height] in "
        "pixels from the upper left corner: convert them"
    )
    if finding.hopeless:
        raise ValueError(message)
    warnings.warn(message, stacklevel=5)


def _fractions(boxes: NDArray[np.float64]) -> _Finding | None:
    inside = ((boxes >= 0) & (boxes <= 1)).all(axis=1)
    inside &= (boxes[:, :2] + boxes[:, 2:] / 2 <= 1.01).all(axis=1)  # from corner or from centre
    if inside.mean() < _NEARLY_ALL:
        return None
    # A box [0, 0, 1, 1] alone can be the first pixel; a part of a pixel is never an object.
    hopeless = bool(inside.all() and (boxes % 1 != 0).any())
    return _Finding(inside, "lie in 0..1", "fractions of the image's size", hopeless)


def _below_a_pixel(boxes: NDArray[np.float64]) -> _Finding | None:
    tiny = boxes[:, 2:].min(axis=1) < 1
    if len(boxes) < 3 or tiny.mean() < 0.5:
        return None
    likely = "fractions of the image's size, or coordinates of a smaller copy"
    return _Finding(tiny, "are narrower or lower than a pixel", likely)


def _cut(boxes: NDArray[np.float64], limits: NDArray[np.float64]) -> _Finding | None:
    """Boxes that lose much at the edges of their image, and the reading that explains it."""
    start, sides = boxes[:, :2], boxes[:, 2:]
    end = start + sides
    visible = (np.minimum(end, limits) - np.maximum(start, 0)).clip(0)
    left = (visible / sides).prod(axis=1)  # the share of each box inside of its image
    lose_half = left < 0.5
    half = sides / 2
    centres = _hold((start - half >= -_SLACK) & (start + half <= limits + _SLACK))
    corners = _hold((sides > start) & (start >= -_SLACK) & (sides <= limits + _SLACK))
    if corners and lose_half.mean() >= 0.2:
        return _Finding(
            lose_half,
            "lose more than half of their area at the image's edges",
            f"{_CORNERS} or {_CENTRES}" if centres else _CORNERS,
        )
    beyond = (end > limits + _SLACK).any(axis=1)
    enough = lose_half.mean() >= 0.5 or beyond.sum() >= 3
    if centres and enough and beyond.mean() >= 0.05:
        return _Finding(
            beyond,
            "end beyond the image at the right or the bottom, and none at the left or the top",
            _CENTRES,
        )
    outside = left < 0.25  # objects at the border of a sound data set show more of themselves
    if (outside.mean() >= 0.2 and len(boxes) >= 10) or (outside.mean() >= 0.6 and len(boxes) >= 3):
        return _Finding(
            outside,
            "lose more than three quarters of their area at the image's edges",
            "coordinates of a larger copy of the images (or the images' width and height are "
            "those of a smaller one)",
        )
    return None


def _hold(conditions: NDArray[np.bool_]) -> bool:
    """Whether a reading fits to nearly all boxes: bool ``[N, 2]``, for x and y."""
    return bool(conditions.all(axis=1).mean() >= 0.98)

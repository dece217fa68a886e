from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from sparse_dset.data.units import WrittenBox, check_units

PATH = Path("annotations.json")
SIZE = (480, 640)


def drawn(count: int, side: float, seed: int = 0, inside: bool = True) -> np.ndarray:
    """Boxes (x, y, w, h) spread evenly over an image of SIZE, of about ``side`` of its sides."""
    rng = np.random.default_rng(seed)
    limits = np.array(SIZE[::-1])
    sides = side * rng.uniform(0.5, 1.5, (count, 2)) * limits
    centres = rng.uniform(0, 1, (count, 2)) * limits
    if inside:  # cut at the edges
        corner, end = (centres - sides / 2).clip(0), np.minimum(centres + sides / 2, limits)
        return np.hstack([corner, end - corner])
    return np.hstack([centres - sides / 2, sides])


def check(boxes: np.ndarray | list[list[float]], size: tuple[int, int] = SIZE) -> None:
    check_units([WrittenBox(list(box), size, i) for i, box in enumerate(boxes)], PATH)


CORNERS = {f"corners {n} {s}": (n, s) for n in (5, 40, 400) for s in (0.03, 0.1, 0.3)}


@pytest.mark.parametrize(("count", "side"), CORNERS.values(), ids=CORNERS)
def test_corners_are_told(count, side):
    boxes = drawn(count, side)
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    with pytest.warns(UserWarning, match=r"annotations\.json: .*probably corners"):
        check(corners)


def test_the_message_gives_share_example_and_size():
    message = (
        r"1 of 1 boxes \(100%\) lose more than half .*\[600, 300, 640, 360\] in image 0 of 640x480"
    )
    with pytest.warns(UserWarning, match=message):
        check([[600, 300, 640, 360]])


@pytest.mark.parametrize("side", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("count", [40, 400])
def test_centres_are_told(count, side):
    boxes = drawn(count, side)
    with pytest.warns(UserWarning, match="probably centres"):
        check(np.hstack([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]]))


def test_whole_images_may_be_corners_or_centres():
    with pytest.warns(UserWarning, match=r"corners \[x1.* or centres \[centre x"):
        check(np.tile([320.0, 240.0, 640.0, 480.0], (9, 1)))


@pytest.mark.parametrize("box", [[0.5, 0.5, 1, 1], [0, 0, 0.5, 1], [0.9, 0.9, 0.2, 0.2]])
def test_a_single_fraction_is_enough(box):
    with pytest.raises(ValueError, match="fractions"):
        check([box])


@pytest.mark.parametrize("scale", [1.5, 2, 4])
@pytest.mark.parametrize("side", [0.02, 0.1])
def test_coordinates_of_a_larger_copy_are_told(scale, side):
    with pytest.warns(UserWarning, match="a larger copy"):
        check(drawn(100, side) * scale)


@pytest.mark.parametrize("count", [1, 3, 200])
def test_fractions_are_refused(count):
    boxes = drawn(count, 0.1) / np.tile(SIZE[::-1], 2)
    with pytest.raises(ValueError, match=r"100%\) lie in 0\.\.1.*fractions"):
        check(boxes)


def test_fractions_with_other_boxes_among_them_are_told():
    boxes = drawn(100, 0.1) / np.tile(SIZE[::-1], 2)
    boxes[:3] = [10, 10, 50, 50]
    with pytest.warns(UserWarning, match=r"97 of 100 boxes \(97%\) lie in 0\.\.1"):
        check(boxes)


def test_sides_in_fractions_are_told():
    boxes = drawn(50, 0.1)
    boxes[:, 2:] /= SIZE[::-1]
    with pytest.warns(UserWarning, match="narrower or lower than a pixel"):
        check(boxes)


SOUND = {
    "spread": drawn(200, 0.1),
    "large": drawn(50, 0.8),
    "few": drawn(2, 0.2),
    "crowded borders": np.vstack([drawn(300, 0.4, seed) for seed in range(3)]),
    "beyond the borders": drawn(400, 0.1, inside=False),
    "far beyond the borders": drawn(400, 0.4, inside=False),
    "tiny": np.hstack([drawn(100, 0.1)[:, :2], np.full((100, 2), 1.5)]),
    "points": np.hstack([drawn(100, 0.1)[:, :2], np.full((100, 2), 1.0)]),
    "one corner": np.tile([0.0, 0.0, 30.0, 20.0], (60, 1)),
    "the last corner": np.tile([600.0, 460.0, 40.0, 20.0], (60, 1)),
    "whole images": np.tile([0.0, 0.0, 640.0, 480.0], (60, 1)),
    "a box over the corner": np.array([[620.0, 470.0, 60.0, 60.0]]),
    "without an area": np.array([[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, -1.0, 3.0]]),
    "the second pixel": np.array([[1.0, 1.0, 1.0, 1.0]]),
    "nearly whole images": np.tile([-3.0, -3.0, 650.0, 490.0], (60, 1)),
}


@pytest.mark.parametrize("boxes", SOUND.values(), ids=SOUND)
def test_sound_data_sets_are_not_told_of(boxes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(boxes)
        for box in boxes[:20]:
            check([box])

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sparse_dset.data.boxes import BoxError, clipped_box, raw_box

POLYGON = [4, 5, 20, 5, 20, 21, 4, 21]


@pytest.mark.parametrize(
    "bbox",
    [
        [4, 5, 16, 16],
        ["4", "5", "16", "16"],
        [" 4.0", "5e0", 16, "16"],
        "4, 5, 16, 16",
        "[4 5 16 16]",
        None,
        [],
        "",
    ],
)
def test_numbers_may_be_text_and_a_missing_box_is_that_of_the_polygon(bbox):
    assert raw_box({"bbox": bbox, "segmentation": [POLYGON]}) == [4, 5, 16, 16]


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        (POLYGON, [4, 5, 16, 16]),
        ([list(map(str, POLYGON))], [4, 5, 16, 16]),
        ([POLYGON, [30, 1, 31, 1, 31, 3]], [4, 1, 27, 20]),
        ({"size": [4, 3], "counts": [5, 2, 5]}, [1, 1, 1, 2]),
        ({"size": ["4", "3"], "counts": [0, 12]}, [0, 0, 3, 4]),
    ],
)
def test_the_box_of_a_segmentation(segmentation, box):
    assert raw_box({"segmentation": segmentation}) == box


def test_the_box_of_a_mask_is_that_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(100):
        mask = np.zeros(rng.integers(1, 60, 2), dtype=np.uint8, order="F")
        mask[rng.random(mask.shape) < rng.choice([0.02, 0.5])] = 1
        mask[rng.integers(mask.shape[0]), rng.integers(mask.shape[1])] = 1
        encoded = coco_mask.encode(mask)
        text = {**encoded, "counts": encoded["counts"].decode()}
        pixels = mask.flatten("F").astype(int)
        changes = np.flatnonzero(np.diff(pixels, prepend=0, append=-1))
        plain = {"size": list(mask.shape), "counts": np.diff(changes, prepend=0).tolist()}
        expected = coco_mask.toBbox(encoded).tolist()
        assert raw_box({"segmentation": text}) == expected
        assert raw_box({"segmentation": plain}) == expected


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({}, "without a box"),
        ({"segmentation": []}, "without a box"),
        ({"segmentation": [[1, 2, 3, 4]]}, "without a box"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "without a box"),
        ({"segmentation": {"size": [4, 3], "counts": "o"}}, "without a box"),
        ({"segmentation": {"size": [4, 3], "counts": [5, 2]}}, "without a box"),
        ({"segmentation": {"size": [4, 3], "counts": [13, -1]}}, "without a box"),
        ({"segmentation": {"size": [10**9, 10**9], "counts": "0"}}, "without a box"),
        ({"segmentation": {"size": [10**20, 1], "counts": [1, 10**20 - 1]}}, "without a box"),
        ({"segmentation": {"size": [4, 3], "counts": [12]}}, "without an area"),
        ({"bbox": ["4", "5", "six", "7"]}, "not four finite numbers"),
        ({"bbox": ["nan", "5", "6", "7"]}, "not four finite numbers"),
        ({"bbox": [True, 5, 6, 7]}, "not four finite numbers"),
        ({"bbox": {"x": 4}}, "not four finite numbers"),
        ({"bbox": [1, 1, 0, 5]}, "without an area"),
        ({"bbox": [64, 1, 5, 5]}, "outside of their image"),
    ],
)
def test_reasons_for_which_a_box_cannot_be_used(entry, reason):
    with pytest.raises(BoxError, match=reason):
        clipped_box(raw_box(entry), (64, 64))

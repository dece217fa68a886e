from __future__ import annotations

import dataclasses
import pickle

import hydra
import pytest
import torch
from torchvision import tv_tensors

from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.images import ImageReader
from sparse_dset.data.transforms import eval_transforms
from sparse_dset.data.view import View, reader_config, recorded_view, view_of
from sparse_dset.instantiate import instantiate


def test_a_view_is_a_value():
    view = View([64, 96], "letterbox")
    assert view == View((64, 96), "letterbox") != View((64, 96))
    assert View(64).size == (64, 64)
    assert pickle.loads(pickle.dumps(view)) == view
    assert hydra.utils.instantiate(view.as_config(), _convert_="all") == view
    assert view.with_size([32, 32]) == View((32, 32), "letterbox")
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.mode = "stretch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (64, 96), "mode": "pad"}, "'stretch' or 'letterbox', got 'pad'"),
        ({"size": (64, 96), "mode": None}, "'stretch' or 'letterbox', got None"),
        ({"size": (0, 96)}, "at least 1, got 0"),
        ({"size": (64.5, 96)}, r"whole number .*64\.5"),
        ({"size": "64"}, r"\[height, width\], got '64'"),
    ],
)
def test_what_is_no_view_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        View(**options)


@pytest.mark.parametrize(
    ("picture", "stretched", "fitted"),
    [
        ((64, 192), (96, 96), (32, 96)),
        ((192, 64), (96, 96), (96, 32)),
        ((1, 1), (96, 96), (96, 96)),
        ((1, 500), (96, 96), (1, 96)),
        ((37, 53), (96, 96), (67, 96)),
    ],
)
def test_the_size_of_a_picture(picture, stretched, fitted):
    assert View((96, 96)).size_of(*picture) == stretched
    assert View((96, 96), "letterbox").size_of(*picture) == fitted
    image = torch.zeros(3, *picture, dtype=torch.uint8)
    assert View((96, 96), "letterbox").resized(image).shape == (3, *fitted)


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_validation_and_prediction_see_the_same_pixels(mode):
    image = torch.randint(256, (3, 37, 53), dtype=torch.uint8)
    boxes = tv_tensors.BoundingBoxes([[0, 0, 53, 37]], format="XYXY", canvas_size=(37, 53))
    view = View((64, 96), mode)
    target = {"boxes": boxes, "labels": torch.tensor([1]), "image_id": 3}
    seen, moved = view(tv_tensors.Image(image), target)
    assert torch.equal(seen, view.resized(image))
    assert moved["boxes"][0].tolist() == [0, 0, seen.shape[2], seen.shape[1]]
    assert (moved["labels"].item(), moved["image_id"]) == (1, 3)
    older = eval_transforms((64, 96), "fixed" if mode == "stretch" else mode)
    assert older == view


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (None, None),
        ({"root": "x"}, None),
        ({"transforms": None}, None),
        ({"transforms": {"_target_": "other.Transform", "size": [9, 9]}}, None),
        ({"transforms": View((9, 8), "letterbox").as_config()}, View((9, 8), "letterbox")),
        (
            {"transforms": {"_target_": "sparse_dset.data.transforms.eval_transforms", "size": 9}},
            View((9, 9)),
        ),
        (
            {
                "transforms": {
                    "_target_": "sparse_dset.data.transforms.eval_transforms",
                    "size": [9, 8],
                    "mode": "fixed",
                }
            },
            View((9, 8)),
        ),
    ],
)
def test_views_are_read_from_recorded_configurations(recorded, expected):
    assert recorded_view(recorded) == expected


def test_other_transforms_are_no_view(tmp_path):
    data = CocoDetection.__new__(CocoDetection)
    for transforms in (None, lambda image, target: (image, target), {"mode": "letterbox"}):
        data.transforms, data.reader = transforms, ImageReader()
        with pytest.raises(ValueError, match="data.val.transforms must be a .*View"):
            view_of(data)


def test_the_reader_belongs_to_the_view(tmp_path):
    reader = ImageReader(background=(1, 2, 3), stretch=True)
    view = View((64, 96), "letterbox", reader)
    assert instantiate(view.as_config()) == view
    assert view != View((64, 96), "letterbox")
    data = CocoDetection.__new__(CocoDetection)
    data.transforms, data.reader = View((64, 96), "letterbox"), reader
    assert view_of(data) == view
    recorded = {"reader": reader_config(reader), "transforms": data.transforms.as_config()}
    assert recorded_view(recorded) == view

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.transforms import (
    MIN_VISIBLE,
    Letterbox,
    Mosaic,
    RandomColour,
    RandomWindow,
    crop_sample,
    eval_transforms,
    train_transforms,
)
from sparse_dset.engine.loading import init_worker


def scene(height: int, width: int, boxes: list[list[float]]) -> tuple[tv_tensors.Image, dict]:
    """A black image whose boxes (xyxy, whole numbers) are painted white."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        image[:, int(y1) : int(y2), int(x1) : int(x2)] = 255
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return tv_tensors.Image(image), {
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(len(boxes)),
        "image_id": 3,
        "orig_size": (height, width),
    }


def painted_box(image: torch.Tensor) -> torch.Tensor:
    """Corners of the white part of an image."""
    white = image.as_subclass(torch.Tensor)[0] > 127
    rows, columns = white.any(1).nonzero(), white.any(0).nonzero()
    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return torch.tensor([int(corner) for corner in corners], dtype=torch.float32)


PIPELINES: dict[str, dict[str, Any]] = {
    "fixed": {"size": (96, 128)},
    "square": {"size": 96},
    "aspect": {"size": (96, 128), "keep_aspect": True},
    "aerial": {
        "size": (120, 200),
        "crop": 96,
        "scale_jitter": (0.5, 2.0),
        "keep_aspect": True,
        "rotate90": True,
    },
    "turned": {"size": (96, 160), "rotate90": True},
    "photo": {"size": 128, "zoom_out": 1.0, "iou_crop": 1.0},
}


@pytest.mark.parametrize("name", PIPELINES)
def test_boxes_follow_the_pixels(name):
    pipeline = train_transforms(**PIPELINES[name], photometric=False)
    compared = 0
    for _ in range(40):
        image, target = pipeline(*scene(100, 180, [[110, 20, 150, 50]]))
        boxes = target["boxes"].as_subclass(torch.Tensor)
        assert len(boxes) == len(target["labels"])
        if len(boxes):
            # Half-lit pixels at the borders: one pixel of an object of at least a dozen.
            assert (painted_box(image) - boxes[0]).abs().max() <= 1.0
            compared += 1
    assert compared >= 8


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("shape", [(100, 180), (180, 100), (20, 30), (4, 300)])
def test_every_image_comes_out_alike(name, shape):
    height, width = shape
    options = PIPELINES[name]
    size = options.get("crop", options["size"])
    expected = (size, size) if isinstance(size, int) else size
    pipeline = train_transforms(**options)
    some: list[list[float]] = [[0, 0, 15, 4]]
    for boxes in ([], some):
        for _ in range(10):
            image, target = pipeline(*scene(height, width, boxes))
            assert image.shape == (3, *expected)
            assert image.dtype == torch.uint8
            assert target["boxes"].shape == (len(target["labels"]), 4)
            assert target["boxes"].canvas_size == expected
            assert target["image_id"] == 3


def test_the_whole_image_is_seen_without_jitter_or_crop():
    window = RandomWindow((50, 180))
    image, target = window(*scene(100, 180, [[110, 20, 150, 50]]))
    assert image.shape == (3, 50, 180)
    assert target["boxes"].tolist() == [[110, 10, 150, 25]]


def test_the_aspect_is_kept_when_asked():
    window = RandomWindow((200, 200), keep_aspect=True)
    _, target = window(*scene(50, 100, [[10, 10, 20, 20]]))
    x1, y1, x2, y2 = target["boxes"][0].tolist()
    assert x2 - x1 == pytest.approx(20)
    assert y2 - y1 == pytest.approx(20)


def test_jitter_changes_the_scale_within_its_range():
    window = RandomWindow((100, 100), crop=400, scale_jitter=(0.5, 2.0))
    widths = []
    for _ in range(50):
        _, target = window(*scene(100, 100, [[40, 40, 60, 60]]))
        x1, _, x2, _ = target["boxes"][0].tolist()
        widths.append(x2 - x1)
    assert 9.9 <= min(widths) < 12
    assert 32 < max(widths) <= 40.4


def test_all_quarter_turns_happen():
    window = RandomWindow((20, 40), rotate90=True)
    seen: set[tuple[float, ...]] = set()
    for _ in range(40):
        _, target = window(*scene(20, 40, [[0, 0, 4, 2]]))
        seen.update(tuple(box) for box in target["boxes"].round().tolist())
    # Turned by 90 degrees the window is half as wide, so the corner is not always inside.
    assert (0, 0, 4, 2) in seen
    assert (36, 18, 40, 20) in seen


def test_square_turns_put_a_corner_in_all_corners():
    window = RandomWindow(32, rotate90=True)
    seen = set()
    for _ in range(60):
        _, target = window(*scene(32, 32, [[0, 0, 8, 4]]))
        seen.add(tuple(target["boxes"][0].tolist()))
    assert seen == {(0, 0, 8, 4), (0, 24, 4, 32), (24, 28, 32, 32), (28, 0, 32, 8)}


def test_flips_can_be_turned_off():
    pipeline = train_transforms(32, flip=False, photometric=False)
    flipping = train_transforms(32, photometric=False)
    outcomes: dict[bool, set[float]] = {True: set(), False: set()}
    for _ in range(30):
        for flip, steps in ((True, flipping), (False, pipeline)):
            _, target = steps(*scene(32, 32, [[0, 0, 8, 8]]))
            outcomes[flip].add(target["boxes"][0, 0].item())
    assert outcomes == {True: {0.0, 24.0}, False: {0.0}}


@pytest.mark.parametrize(("left", "kept"), [(6, True), (7, False), (20, False), (-3, True)])
def test_boxes_mostly_outside_of_a_window_are_dropped(left, kept):
    sample = scene(50, 50, [[0, 10, 10, 20], [20, 10, 30, 20]])
    image, target = crop_sample(*sample, top=0, left=left, height=40, width=45)
    assert image.shape == (3, 40, 45)
    assert (0 in target["labels"]) == kept
    assert 1 in target["labels"]
    if kept:
        assert target["boxes"][0].tolist() == [max(-left, 0), 10, 10 - left, 20]
    assert 3 / 10 < MIN_VISIBLE < 4 / 10


def test_what_lies_outside_of_the_image_is_black():
    image, _ = crop_sample(*scene(10, 10, [[0, 0, 10, 10]]), top=-2, left=-3, height=20, width=20)
    assert painted_box(image).tolist() == [3, 2, 13, 12]


@pytest.mark.parametrize("size", [0, -1, (0, 5), (5, -5), (5,), (5.5, 5), "5"])
def test_impossible_sizes_are_refused(size):
    for factory in (train_transforms, eval_transforms, Letterbox):
        with pytest.raises(ValueError, match="size"):
            factory(size)


@pytest.mark.parametrize(
    "options",
    [
        {"scale_jitter": (0, 1)},
        {"scale_jitter": (2, 1)},
        {"scale_jitter": (1,)},
        {"zoom_out": 1.5},
        {"iou_crop": -0.5},
        {"crop": 0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"scale_jitter|probability|crop"):
        train_transforms(32, **options)


def test_zooming_out_of_a_large_photo_stays_small(monkeypatch):
    seen = []
    forward = v2.RandomZoomOut.forward
    monkeypatch.setattr(
        v2.RandomZoomOut, "forward", lambda self, *x: seen.append(x[0].shape) or forward(self, *x)
    )
    transform = train_transforms((32, 64), zoom_out=1.0)
    for height, width, expected in ((600, 600, (64, 64)), (50, 70, (50, 70))):
        image, _ = transform(*scene(height, width, [[0, 0, width, height]]))
        assert image.shape == (3, 32, 64)
        assert tuple(seen.pop()[-2:]) == expected


@pytest.mark.parametrize(("height", "width"), [(100, 180), (180, 100), (64, 64)])
def test_fixed_evaluation_stretches_to_height_and_width(height, width):
    image, target = eval_transforms((32, 96))(*scene(height, width, [[0, 0, width, height]]))
    assert image.shape == (3, 32, 96)
    assert target["boxes"][0].tolist() == pytest.approx([0, 0, 96, 32])


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((540, 960), (384, 640), (360, 640)),
        ((960, 540), (384, 640), (384, 216)),
        ((540, 960), 640, (360, 640)),
        ((10, 10), (64, 32), (32, 32)),
        ((1, 900), (64, 64), (1, 64)),
    ],
)
def test_letterbox_fits_within_and_keeps_the_aspect(shape, size, expected):
    height, width = shape
    image, target = eval_transforms(size, "letterbox")(
        *scene(height, width, [[0, 0, width, height]])
    )
    assert image.shape == (3, *expected)
    assert target["boxes"][0].tolist() == pytest.approx([0, 0, expected[1], expected[0]])


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="'stretch' or 'letterbox', got 'pad'"):
        eval_transforms(32, "pad")  # type: ignore[arg-type]


def test_colour_changes_the_pixels_alone():
    grey = tv_tensors.Image(torch.full((3, 8, 8), 128, dtype=torch.uint8))
    _, target = scene(8, 8, [[1, 1, 4, 4]])
    values = set()
    for _ in range(30):
        image, same = RandomColour()(grey, target)
        assert isinstance(image, tv_tensors.Image)
        assert same["boxes"].equal(target["boxes"])
        pixel = image[:, 0, 0].int()
        assert pixel.max() - pixel.min() <= 1  # saturation and hue leave grey grey
        values.add(pixel[0].item())
    assert max(values) - min(values) > 30


def test_no_colour_jitter_is_the_identity():
    image = tv_tensors.Image(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))
    unchanged, _ = RandomColour(0, 0, 0, 0)(image, {})
    assert (unchanged.int() - image.int()).abs().max() <= 1


def test_a_third_of_a_turn_of_hue_swaps_the_channels():
    image = tv_tensors.Image(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))
    colour = RandomColour(0, 0, 0, hue=1 / 3)
    turned = [colour(image, {})[0].int() for _ in range(60)]
    swapped = image.roll(1, dims=0).int()
    assert min((t - swapped).abs().max().item() for t in turned) < 30


def test_saturation_moves_pixels_from_and_to_their_grey():
    image = tv_tensors.Image(torch.randint(100, 150, (3, 16, 16), dtype=torch.uint8))
    to_grey = torch.tensor([0.299, 0.587, 0.114])

    def grey(pixels: torch.Tensor) -> torch.Tensor:
        return torch.einsum("c,chw->hw", to_grey, pixels.as_subclass(torch.Tensor).float())

    spreads = []
    for _ in range(30):
        changed, _ = RandomColour(0, 0, saturation=1.0, hue=0)(image, {})
        assert (grey(changed) - grey(image)).abs().max() <= 1.5
        spreads.append((changed.float().std(dim=0).mean() / image.float().std(dim=0).mean()).item())
    assert min(spreads) < 0.3
    assert max(spreads) > 1.7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> CocoDetection:
    """Six images of 60x80 in six greys, each with a white square, but none in the last."""
    folder = tmp_path_factory.mktemp("mosaic")
    images, annotations = [], []
    for i in range(6):
        pixels = np.full((60, 80, 3), 10 * (i + 1), dtype=np.uint8)
        if i < 5:
            pixels[50:58, 70:78] = 255
            annotations.append({"image_id": i, "category_id": 1 + i % 2, "bbox": [70, 50, 8, 8]})
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 60})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 2}]}
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return CocoDetection(folder, path, cache=True)


def test_a_mosaic_joins_four_images_and_their_objects(dataset):
    mosaic = Mosaic(dataset, (48, 64), probability=1.0)
    assert len(mosaic) == len(dataset)
    objects = 0
    for index in itertools.islice(itertools.cycle(range(6)), 60):
        image, target = mosaic[index]
        assert image.shape == (3, 48, 64)
        assert target["size"] == target["orig_size"] == (48, 64)
        assert target["image_id"] == index
        for cx, cy, w, h in (target["boxes"] * torch.tensor([64, 48] * 2)).tolist():
            x1, y1 = round(cx - w / 2), round(cy - h / 2)
            x2, y2 = round(cx + w / 2), round(cy + h / 2)
            assert (image[:, y1:y2, x1:x2] == 1).all()
        objects += len(target["labels"])
    assert objects / 60 > 2  # five images of six hold one object


def test_a_mosaic_happens_as_often_as_asked(dataset):
    assert torch.equal(Mosaic(dataset, 48, probability=0.0)[2][0], dataset[2][0])
    half = Mosaic(dataset, 48, probability=0.5)
    joined = sum(half[0][0].shape[-1] == 48 for _ in range(100))
    assert 30 <= joined <= 70
    with pytest.raises(ValueError, match=r"probability.*1\.5"):
        Mosaic(dataset, 48, probability=1.5)


def test_a_mosaic_takes_tiles_larger_than_the_images(dataset):
    image, target = Mosaic(dataset, 400, probability=1.0)[5]
    assert image.shape == (3, 400, 400)
    assert len(target["labels"]) <= 4


def test_the_transforms_of_the_data_set_see_the_mosaic(dataset):
    transformed = CocoDetection(
        dataset.root,
        dataset.annotations,
        train_transforms((48, 64), crop=32, scale_jitter=(0.5, 2), rotate90=True),
    )
    image, target = Mosaic(transformed, (48, 64), probability=1.0)[0]
    assert image.shape == (3, 32, 32)
    assert target["boxes"].shape == (len(target["labels"]), 4)


def test_the_seed_decides_everything(dataset):
    options: dict[str, Any] = {
        "crop": 32,
        "scale_jitter": (0.5, 2.0),
        "rotate90": True,
        "iou_crop": 0.5,
    }
    mosaic = Mosaic(
        CocoDetection(dataset.root, dataset.annotations, train_transforms(48, **options)), 64
    )

    def epoch(seed: int, num_workers: int) -> torch.Tensor:
        loader = DataLoader(
            mosaic,
            num_workers=num_workers,
            worker_init_fn=init_worker,
            collate_fn=lambda samples: samples[0][0],
            generator=torch.Generator().manual_seed(seed),
        )
        torch.manual_seed(seed)
        return torch.stack(list(loader))

    for num_workers in (0, 2):
        assert torch.equal(epoch(1, num_workers), epoch(1, num_workers))
        assert not torch.equal(epoch(1, num_workers), epoch(2, num_workers))


@pytest.mark.parametrize("size", [(1, 64), (64, 3), (4, 5)])
def test_an_image_too_thin_to_crop_stays_whole(size):
    boxes = tv_tensors.BoundingBoxes([[0, 0, 1, 1]], format="XYXY", canvas_size=size)
    target = {"boxes": boxes, "labels": torch.zeros(1, dtype=torch.int64)}
    transform = train_transforms(32, iou_crop=1.0)
    for _ in range(10):
        image, _ = transform(tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8)), target)
        assert image.shape == (3, 32, 32)

"""The checkpoint that ships with the project finds what it was trained for, where it is."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from sparse_dset import load_detector
from sparse_dset.config import package_file
from sparse_dset.data.synthetic import CLASSES, Scene, render_scene
from sparse_dset.data.view import View
from sparse_dset.models.detector import Detector
from sparse_dset.structures.boxes import pairwise_iou

WEIGHTS = package_file("weights/nano_roads.pt")
SEEDS = [100_003, 100_019, 100_043]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector(WEIGHTS)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    found = [scene for scene in map(render_scene, SEEDS) if len(scene.boxes) > 4]
    assert found
    return found


def _recall(boxes: Tensor, scene: Scene, *, flip: bool) -> float:
    """The share of a scene's objects that some box overlaps by half."""
    truth = torch.from_numpy(scene.boxes).clone()
    truth[:, :2] += truth[:, 2:] / 2
    if flip:
        truth[:, 0] = scene.image.shape[1] - truth[:, 0]
    found = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
    overlap = pairwise_iou(found, truth)
    return (overlap.amax(0) > 0.5).float().mean().item() if len(found) else 0.0


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("execution", "keep_ratio"), [("dense", None), ("dense_scatter", 0.5), ("sparse", 0.5)]
)
def test_objects_are_found_where_they_are(
    detector: Detector, scenes: list[Scene], execution: str, keep_ratio: float | None, flip: bool
) -> None:
    images = [torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes]
    images = [image.flip(2) for image in images] if flip else images
    found = detector.predict(images, 0.2, execution=execution, keep_ratio=keep_ratio)
    recalls = [_recall(f["boxes"], s, flip=flip) for f, s in zip(found, scenes, strict=True)]
    assert sum(recalls) / len(recalls) > 0.6


def test_a_picture_and_its_padded_batch_give_the_same(
    detector: Detector, scenes: list[Scene]
) -> None:
    image = torch.from_numpy(scenes[0].image).permute(2, 0, 1)[None] / 255
    padded = torch.zeros(1, 3, 416, 736)
    padded[:, :, :384, :640] = image
    mask = torch.ones(1, 416, 736, dtype=torch.bool)
    mask[:, :384, :640] = False
    with torch.no_grad():
        alone = detector(image, keep_ratio=0.3)
        within = detector(padded, padding_mask=mask, keep_ratio=0.3)
    torch.testing.assert_close(alone.pred_boxes, within.pred_boxes, rtol=0, atol=1e-3)
    assert torch.equal(alone.num_kept, within.num_kept)


def test_class_names_come_with_the_weights(detector: Detector) -> None:
    assert detector.class_names == CLASSES


def test_the_view_comes_with_the_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_detector(WEIGHTS).view == View((384, 640), "stretch")

"""An audit counts as many images as an average keep ratio needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_dset import build_detector
from sparse_dset.audit.audit import audit, audit_steps
from sparse_dset.audit.images import enough_images
from sparse_dset.audit.summary import format_audit
from sparse_dset.benchmark.arms import Arm
from sparse_dset.benchmark.validation import open_validation_set
from sparse_dset.config import compose_config
from sparse_dset.engine.calibrate import calibrated
from sparse_dset.engine.evaluate import evaluation_loader

NUM_IMAGES = 12


@pytest.fixture
def dataset(tmp_path: Path):
    """Images from plain grey to noise, which a scorer finds unequally busy."""
    images = []
    for i in range(NUM_IMAGES):
        noise = np.random.default_rng(i).normal(128, 10 * i, (64, 96, 3)).clip(0, 255)
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 96, "height": 64})
    categories = [{"id": i, "name": str(i)} for i in range(3)]
    annotation = {"id": 1, "image_id": 0, "category_id": 0, "bbox": [8, 8, 16, 16]}
    annotation |= {"area": 256, "iscrowd": 0}
    coco = {"images": images, "annotations": [annotation], "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(coco))
    overrides = ["data=coco", f"data.root={tmp_path}", "model=nano"]
    overrides += [f"data.{part}.root={tmp_path}" for part in ("train", "val")]
    overrides += [f"data.{part}.annotations={tmp_path}/val.json" for part in ("train", "val")]
    config = compose_config("train", overrides)
    return open_validation_set(config["data"], (64, 96))


def _model(selector: str):
    return build_detector("nano", 3, [f"pruner.selector={selector}"], pretrained=False).eval()


def _share(model, images, keep_ratio):
    out = model(images, execution="sparse", keep_ratio=keep_ratio)
    return float((out.num_kept.sum(1) / out.num_tokens.sum(1)).mean())


@pytest.mark.parametrize("selector", ["threshold", "mass"])
@torch.no_grad()
def test_images_are_added_until_the_mean_is_what_was_asked(selector, dataset):
    model = _model(selector)
    model.pruner.selector, _ = calibrated(model, evaluation_loader(dataset, 4), progress=False)
    for ratio in (0.317, 0.473):  # no share of these few tokens
        options = {"batch_size": 2, "at_most": 100}
        images = enough_images(model, dataset, [ratio], tolerance=0.05, **options)
        close = abs(_share(model, images, ratio) - ratio) <= 0.05
        assert close or len(images) == NUM_IMAGES
        assert len(enough_images(model, dataset, [ratio], tolerance=0, **options)) == NUM_IMAGES
        assert len(enough_images(model, dataset, [ratio], tolerance=1, **options)) == 2
        few = enough_images(model, dataset, [ratio], tolerance=0, batch_size=2, at_most=5)
        assert len(few) == 5


def test_where_every_image_keeps_the_same_one_batch_is_enough(dataset):
    images = enough_images(_model("topk"), dataset, [0.3], batch_size=3, tolerance=0, at_most=9)
    assert images.shape == (3, 3, 64, 96)


@torch.no_grad()
def test_counts_are_means_over_the_batches():
    model, images = _model("topk"), torch.rand(3, 3, 64, 96)
    config = compose_config("detector", ["model=nano", "model.num_classes=3"])
    arms, quick = [Arm("sparse", 0.5)], {"warmup": 0, "repeats": 2, "depth": 1}
    rows = audit(model, config, images, arms, batch_size=2, **quick)
    alone = [
        audit(model, config, part, arms, **quick)[0]["total"]["gflops"] * len(part)
        for part in images.split(2)
    ]
    assert rows[0]["total"]["gflops"] == pytest.approx(sum(alone) / 3)
    assert rows[0]["num_images"] == 3
    kept = model(images, execution="sparse", keep_ratio=0.5)
    expected = (kept.num_kept.sum(0) / kept.num_tokens.sum(0)).tolist()
    assert list(rows[0]["kept"].values()) == pytest.approx(expected)
    steps = audit_steps(model, config, images, 0.5, batch_size=2)
    assert {step["num_images"] for step in steps} == {3}
    text = format_audit(rows, steps)
    assert "What was kept" in text
    assert f"{expected[0]:.3f}" in text

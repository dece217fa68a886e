"""The inference form gives the same outputs."""

from __future__ import annotations

import pytest
import torch

from tests.models.detectors import make_detector


@pytest.mark.parametrize("model", ["nano", "r18"])
@pytest.mark.parametrize("execution", ["dense", "dense_scatter", "sparse", "masked"])
def test_outputs_stay_the_same(execution, model):
    # As many queries as tokens: rounding cannot change the choice among them, only their order.
    detector = make_detector(model, "model.decoder.num_queries=400", dtype=torch.float32).eval()
    images = torch.rand(2, 3, 96, 160)
    with torch.inference_mode():
        plain = detector(images, execution=execution, keep_ratio=0.5)
        fused = detector.fuse()(images, execution=execution, keep_ratio=0.5)
    assert torch.equal(plain.query_mask, fused.query_mask)
    for image, real in enumerate(plain.query_mask):
        ours, theirs = (
            torch.cat([out.pred_logits[image], out.pred_boxes[image]], 1)[real]
            for out in (fused, plain)
        )
        distance = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist")
        scale = theirs.norm(dim=1).mean()
        assert distance.amin(1).max() <= 1e-4 * scale
        assert distance.amin(0).max() <= 1e-4 * scale


def test_it_cannot_be_trained():
    detector = make_detector("nano", dtype=torch.float32).fuse()
    assert not detector.training
    with pytest.raises(RuntimeError, match="cannot be trained"):
        detector.train()


@torch.no_grad()
def test_large_maps_of_inverted_residuals():
    """Large enough for strips."""
    model, images = make_detector("nano", dtype=torch.float32), torch.rand(2, 3, 320, 352)
    expected = model.backbone(images)
    for ours, theirs in zip(model.fuse().backbone(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


def test_it_runs_outside_of_no_grad():
    detector = make_detector("nano", dtype=torch.float32).fuse()
    images = torch.rand(1, 3, 96, 160)
    for execution in ("dense", "dense_scatter", "sparse", "masked"):
        out = detector(images, execution=execution, keep_ratio=0.5)
        assert not out.pred_logits.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_folded_too(dtype):
    exact = make_detector("nano", dtype=torch.float32)
    images, state = torch.rand(1, 3, 96, 160), torch.get_rng_state()
    expected = exact.backbone(images)
    plain = exact.to(dtype)
    rounded = plain.backbone(images.to(dtype))
    fused = plain.fuse().backbone
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    for ours, theirs, truth in zip(fused(images.to(dtype)), rounded, expected, strict=True):
        assert ours.dtype == dtype
        # As far from float32 as what it replaces.
        assert (ours - truth).abs().mean() <= 1.5 * (theirs - truth).abs().mean()

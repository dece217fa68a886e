"""The inference form gives the same outputs."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("model", ["nano", "r18"])
def test_outputs_stay_the_same(model, make_detector):
    detector = make_detector(model, dtype=torch.float32).eval()
    images = torch.rand(2, 3, 96, 160)
    executions = ("dense", "dense_scatter", "sparse", "masked")
    with torch.inference_mode():
        plain = [detector(images, execution=e, keep_ratio=0.5) for e in executions]
        detector.fuse()
        fused = [detector(images, execution=e, keep_ratio=0.5) for e in executions]
    for before, after in zip(plain, fused, strict=True):
        torch.testing.assert_close(after.pred_logits, before.pred_logits, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(after.pred_boxes, before.pred_boxes, atol=1e-3, rtol=1e-3)


def test_it_cannot_be_trained(make_detector):
    detector = make_detector("nano", dtype=torch.float32).fuse()
    assert not detector.training
    with pytest.raises(RuntimeError, match="cannot be trained"):
        detector.train()

"""The dense execution against Hugging Face's RT-DETRv2 with the same weights."""

from __future__ import annotations

import pytest
import torch

from sparse_dset import build_detector

hugging_face = pytest.importorskip("sparse_dset.analysis.hugging_face")


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_dense_equals_hugging_face(depth: int) -> None:
    # float64 keeps near ties of the query selection in one order.
    peer = hugging_face.build(depth).double()
    model = build_detector(f"r{depth}", 80, ["model.encoder.position=row_major"]).double().eval()
    model.load_rtdetr(hugging_face.released_names(peer))
    for height, width in [(320, 320), (320, 640)]:
        images = torch.rand(2, 3, height, width, dtype=torch.float64)
        with torch.no_grad():
            ours, theirs = model(images, execution="dense"), peer(images)
        torch.testing.assert_close(ours.pred_logits, theirs.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.pred_boxes, theirs.pred_boxes, rtol=0, atol=1e-4)

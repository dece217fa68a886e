"""The whole detector in one compiled graph computes what it computes without."""

from __future__ import annotations

import pytest
import torch

from sparse_dset import build_detector


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("execution", ["dense", "sparse"])
def test_a_compiled_detector_equals_itself(execution: str, fused: bool) -> None:
    torch.manual_seed(0)
    model = build_detector("nano", 3, ["pruner=early"], pretrained=False).eval()
    model = model.fuse() if fused else model
    images = torch.rand(1, 3, 64, 96)
    options = {"execution": execution, "keep_ratio": 0.5}
    with torch.no_grad():
        expected = model(images, **options)
        compiled = torch.compile(model, backend="aot_eager")(images, **options)
    torch.testing.assert_close(compiled.pred_logits, expected.pred_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled.pred_boxes, expected.pred_boxes, rtol=1e-4, atol=1e-4)
    assert torch.equal(compiled.num_kept, expected.num_kept)

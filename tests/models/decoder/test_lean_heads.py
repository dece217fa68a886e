from __future__ import annotations

import pytest
import torch

from sparse_dset import build_detector


@pytest.mark.parametrize("execution", ["dense", "sparse", "masked"])
def test_lean_heads_change_nothing(execution: str) -> None:
    plain = build_detector("nano", 3, pretrained=False).eval()
    lean = build_detector("nano", 3, ["model.decoder.lean_heads=true"], pretrained=False).eval()
    lean.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        a, b = (m(images, execution=execution, keep_ratio=0.5) for m in (plain, lean))
    torch.testing.assert_close(a.pred_logits, b.pred_logits)
    torch.testing.assert_close(a.pred_boxes, b.pred_boxes)

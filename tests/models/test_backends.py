from __future__ import annotations

import pytest
import torch

from sparse_dset import build_detector
from sparse_dset.models.decoder import memory
from sparse_dset.ops import backend_problems, resolve_backend
from tests.models.training import run_step


@pytest.mark.skipif(bool(backend_problems()["spconv"]), reason="spconv cannot run here")
def test_spconv_carries_the_sparse_execution() -> None:
    plain = build_detector("nano", 3, pretrained=False)
    other = build_detector("nano", 3, ["ops.backend=spconv"], pretrained=False)
    other.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 128)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3]])
    targets = [{"labels": torch.tensor([1]), "boxes": boxes, "image_id": i} for i in range(2)]
    outputs = []
    for model in (plain, other):
        outputs.append(run_step(model, images, targets, execution="sparse", keep_ratio=0.5))
    assert [out.backend for out in outputs] == [resolve_backend("auto", "cpu").name, "spconv"]
    torch.testing.assert_close(outputs[0].pred_boxes, outputs[1].pred_boxes, rtol=0, atol=1e-4)
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        if a.grad is not None:
            scale = a.grad.abs().max().clamp(min=1.0)
            assert (a.grad - b.grad).abs().max() <= 1e-3 * scale, name


def test_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="tpu"):
        build_detector("nano", 3, ["ops.backend=tpu"], pretrained=False)


def test_deterministic_algorithms_leave_grid_sample_out(monkeypatch):
    """Its gradient is not deterministic on a GPU."""

    def refuse(*_):
        raise AssertionError("grid_sample runs")

    model = build_detector("nano", 2, ["ops.backend=reference"], pretrained=False).eval()
    images = torch.rand(1, 3, 64, 64)
    expected = model(images, execution="dense").pred_logits
    monkeypatch.setattr(memory, "dense_deform_attn", refuse)
    with pytest.raises(AssertionError, match="grid_sample runs"):
        model(images, execution="dense")
    torch.use_deterministic_algorithms(True)
    try:
        out = model(images, execution="dense").pred_logits
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)

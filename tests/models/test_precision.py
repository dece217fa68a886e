"""Half precision under autocast on the CPU."""

from __future__ import annotations

import pytest
import torch

from sparse_dset import build_criterion
from tests.models.detectors import make_detector, make_targets, nested_masks
from tests.models.training import losses_of

HALVES = [torch.float16, torch.bfloat16]
MOE = "{_target_:sparse_dset.models.moe.MoEConfig,num_experts:4,top_k:2}"
EXPERTS = [f"model.encoder.moe={MOE}", f"model.decoder.moe={MOE}"]


@pytest.mark.parametrize("execution", ["dense", "sparse", "masked"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_evaluation_is_close_to_float32(dtype, execution):
    # As many queries as tokens: the choice among them cannot differ, only their order.
    model = make_detector("nano", "model.decoder.num_queries=400", *EXPERTS, dtype=torch.float32)
    images, kept = torch.rand(2, 3, 96, 160), nested_masks((3, 5), [0.8, 0.4])
    with torch.no_grad():
        full = model(images, kept=kept, execution=execution)
        with torch.autocast("cpu", dtype):
            half = model(images, kept=kept, execution=execution)
    assert half.pred_logits.dtype == half.pred_boxes.dtype == torch.float32
    assert torch.equal(half.query_mask, full.query_mask)
    for i, real in enumerate(full.query_mask):
        ours, theirs = (
            torch.cat([o.pred_logits[i], o.pred_boxes[i]], 1)[real] for o in (half, full)
        )
        nearest = torch.cdist(ours, theirs).amin(1) / theirs.norm(dim=1).mean()
        assert nearest.quantile(0.9) < (2e-2 if dtype == torch.float16 else 8e-2)


@pytest.mark.parametrize("execution", ["dense", "dense_scatter", "sparse", "masked"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_training_losses_are_float32_and_close(dtype, execution):
    model = make_detector("nano", *EXPERTS, dtype=torch.float32).train()
    images, targets = torch.rand(2, 3, 96, 160), make_targets(3, 1)
    arguments = {"kept": nested_masks((3, 5), [0.8, 0.4]), "execution": execution}
    torch.manual_seed(5)
    full = losses_of(model, images, targets, **arguments)
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype):
        half = losses_of(model, images, targets, **arguments)
    sum(half.values()).backward()
    assert all(v.dtype == torch.float32 for v in half.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    total, wanted = sum(half.values()).item(), sum(full.values()).item()
    assert total == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("execution", ["dense", "sparse"])
def test_large_features_stay_finite_in_float16(execution):
    model = make_detector("nano", *EXPERTS, dtype=torch.float32).train()
    read = model.decoder.read

    def read_scaled(maps):
        memory = read(maps)
        rows = memory.rows.float()
        object.__setattr__(memory, "rows", (rows * (3e4 / rows.abs().max())).half())
        return memory

    model.decoder.read = read_scaled
    with torch.autocast("cpu", torch.float16):
        images, targets = torch.rand(2, 3, 96, 160), make_targets(3, 1)
        out = model(images, targets, execution=execution, keep_ratio=0.6)
        losses = build_criterion()(out, targets)
    assert out.pred_logits.isfinite().all()
    assert out.pred_boxes.isfinite().all()
    assert all(v.isfinite() for v in losses.values())

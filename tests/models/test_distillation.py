"""What pruned executions are taught by the same network when it keeps every token."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from tests.models.detectors import make_detector, make_targets
from tests.models.training import losses_of

SIZE = (96, 160)  # 3 x 5 cells at stride 32


def _images(batch):
    return torch.rand(batch, 3, *SIZE, dtype=torch.float64)


@pytest.mark.parametrize("settings", [(), ("pruner=early",)])
@pytest.mark.parametrize("execution", ["sparse", "masked", "dense_scatter"])
def test_distillation_compares_kept_tokens_with_those_of_the_dense_network(execution, settings):
    images, targets = _images(2), make_targets(2, 1)
    model = make_detector("nano", *settings).train()
    distilled = functools.partial(losses_of, model, images, targets, "losses.distill=2.0")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # statistics differ between the executions
    everything = distilled(execution=execution, keep_ratio=1.0)
    assert float(everything["loss_distill"]) < 1e-5
    losses = distilled(execution=execution, keep_ratio=0.05)
    assert float(losses["loss_distill"]) > 1e-4
    losses["loss_distill"].backward()
    assert model.encoder.fpn_blocks[0].conv1.conv.weight.grad.abs().sum() > 0
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for module in model.encoder.modules():
        module.train()
    model(images, targets, execution="dense")
    with_teacher, without = (copy.deepcopy(model) for _ in range(2))
    for one, weight in ((with_teacher, 2.0), (without, 0.0)):
        torch.manual_seed(0)
        overrides = f"losses.distill={weight}"
        losses_of(one, images, targets, overrides, execution=execution, keep_ratio=0.3)
    buffers = dict(without.named_buffers())
    assert any(not torch.equal(buffers[name], value) for name, value in before.items())
    for name, value in with_teacher.named_buffers():
        torch.testing.assert_close(value, buffers[name])  # the teacher leaves no trace


def test_sparse_and_masked_distil_alike():
    images, targets = _images(2), make_targets(2, 1)
    values = []
    for execution in ("sparse", "masked"):
        model = make_detector("nano", "pruner=early").train()
        options = {"execution": execution, "keep_ratio": 0.4}
        losses = losses_of(model, images, targets, "losses.distill=1.0", **options)
        values.append(losses["loss_distill"])
    torch.testing.assert_close(*values)

"""The gradients of two processes, averaged, are those of one that holds both their images."""

from __future__ import annotations

import pytest
import torch

from sparse_dset.losses.cass import CassLoss
from sparse_dset.losses.dense import DenseSupervision
from sparse_dset.structures.outputs import DensePredictions
from sparse_dset.structures.targets import pad_targets
from tests.processes import in_two_processes

COUNTS = (12, 0)  # one image has all the objects


def _targets(images):
    generator = torch.Generator().manual_seed(1)
    boxes = [0.1 + 0.8 * torch.rand(n, 4, generator=generator) * 0.5 for n in COUNTS]
    labels = [torch.zeros(n, dtype=torch.int64) for n in COUNTS]
    own = [{"labels": labels[i], "boxes": boxes[i], "image_id": i} for i in images]
    return pad_targets(own, 1, "cpu")


def _gradient(loss, inputs, images):
    """The gradient of the loss of some images with respect to their part of the inputs."""
    own = inputs[images].clone().requires_grad_()
    loss(own, _targets(images)).backward()
    return own.grad


def _cass(balanced):
    loss = CassLoss(weight=1.0, balanced=balanced)

    def run(scores, targets):
        extents = torch.full((len(scores), 2), 8.0)
        return loss(scores, torch.ones_like(scores, dtype=torch.bool), targets, extents)

    return run, torch.randn(2, 8, 8)


def _dense():
    torch.manual_seed(2)
    loss = DenseSupervision()
    steps = (torch.arange(8) + 0.5) / 8
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    centers = torch.stack([x.flatten(), y.flatten()], dim=1)

    def run(raw, targets):
        shape = (len(raw), 64, 2)
        cells = torch.full(shape, 1 / 8)
        anchors = torch.cat([centers.expand(shape), 2 * cells], dim=2).logit()
        predictions = DensePredictions(
            logits=raw[..., :1],
            boxes=(raw[..., 1:] + anchors).sigmoid(),
            centers=centers.expand(shape),
            cell_sizes=cells,
            mask=torch.ones(shape[:2], dtype=torch.bool),
        )
        return sum(loss(predictions, targets).values())

    return run, torch.randn(2, 64, 5)


@pytest.mark.parametrize(
    "make", [lambda: _cass(True), lambda: _cass(False), _dense], ids=["balanced", "cass", "dense"]
)
def test_every_object_weighs_the_same_in_each_process(make, tmp_path):
    loss, inputs = make()
    whole = _gradient(loss, inputs, [0, 1])
    parts = in_two_processes(lambda rank: _gradient(loss, inputs, [rank]), tmp_path)
    assert whole[0].norm() > 1e-3
    torch.testing.assert_close(torch.cat(parts) / 2, whole)

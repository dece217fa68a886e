"""Two processes that normalise together see what one process sees that holds both their sites."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_dset import build_detector
from sparse_dset.models.layers import batch_norm
from sparse_dset.models.synced_norm import SyncedBatchNorm
from sparse_dset.structures import MaskedMap, SparseMap, Support


def _norm():
    norm = nn.BatchNorm2d(3).double()
    torch.manual_seed(1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def _masks(counts):
    masks = torch.zeros(2, 4, 5, dtype=torch.bool)
    for mask, count in zip(masks, counts, strict=True):
        mask.view(-1)[torch.randperm(20)[:count]] = True
    return masks


@pytest.mark.parametrize("kind", [SparseMap, MaskedMap])
@pytest.mark.parametrize("counts", [(7, 2), (9, 0), (0, 1), (0, 0), (1, 1)])
def test_uneven_maps_are_normalised_as_one(kind, counts, in_two_processes):
    torch.manual_seed(0)
    images, masks = torch.randn(2, 3, 4, 5, dtype=torch.float64), _masks(counts)
    slopes = torch.randn(2, 3, 4, 5, dtype=torch.float64)

    def run(which):
        norm, x = _norm(), images[which].clone().requires_grad_()
        out = batch_norm(kind.from_dense(x, Support.from_mask(masks[which])), norm)
        (out.to_dense() * slopes[which]).sum().backward()
        grads = norm.weight.grad, norm.bias.grad
        return out.to_dense().detach(), x.grad, grads, norm.running_mean, norm.running_var

    def work(rank):
        with SyncedBatchNorm():
            return run(slice(rank, rank + 1))

    parts = in_two_processes(work)
    whole = run(slice(None))
    for place in (0, 1):  # the output, and the gradient of the input
        torch.testing.assert_close(torch.cat([part[place] for part in parts]), whole[place])
    for mine, theirs, together in zip(parts[0][2], parts[1][2], whole[2], strict=True):
        torch.testing.assert_close(mine + theirs, together)
    for part in parts:
        torch.testing.assert_close(part[3:], whole[3:])


def test_a_whole_detector_sees_the_statistics_of_all(in_two_processes):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    kept = [torch.ones(2, 8, 12, dtype=torch.bool), torch.ones(2, 4, 6, dtype=torch.bool)]
    kept.append(torch.ones(2, 2, 3, dtype=torch.bool))
    for mask, size in zip(kept, (4, 2, 1), strict=True):
        mask[1, size:] = False  # half of the second image's

    def run(which):
        torch.manual_seed(0)
        model = build_detector("nano", 2, ["pruner=early"], pretrained=False).double().train()
        model(images[which], execution="sparse", kept=[mask[which] for mask in kept])
        return dict(model.named_buffers())

    def work(rank):
        with SyncedBatchNorm():
            return run(slice(rank, rank + 1))

    first, second = in_two_processes(work)
    whole = run(slice(None))
    assert any("running_var" in name for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(
            first[name], value, msg=lambda text, name=name: f"{name}: {text}"
        )
        torch.testing.assert_close(second[name], value)

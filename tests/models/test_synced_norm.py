"""Two processes that normalise together see what one process sees that holds both their sites."""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from sparse_dset import build_detector
from sparse_dset.models.layers import batch_norm
from sparse_dset.models.synced_norm import SingleValuesNormalised, SyncedBatchNorm
from sparse_dset.structures import MaskedMap, SparseMap, Support
from tests.models.training import run_step
from tests.processes import in_two_processes


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
def test_uneven_maps_are_normalised_as_one(kind, counts, tmp_path):
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

    parts = in_two_processes(work, tmp_path)
    whole = run(slice(None))
    for place in (0, 1):  # the output, and the gradient of the input
        torch.testing.assert_close(torch.cat([part[place] for part in parts]), whole[place])
    for mine, theirs, together in zip(parts[0][2], parts[1][2], whole[2], strict=True):
        torch.testing.assert_close(mine + theirs, together)
    for part in parts:
        torch.testing.assert_close(part[3:], whole[3:])


def test_a_whole_detector_sees_the_statistics_of_all(tmp_path):
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

    first, second = in_two_processes(work, tmp_path)
    whole = run(slice(None))
    assert any("running_var" in name for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(
            first[name], value, msg=lambda text, name=name: f"{name}: {text}"
        )
        torch.testing.assert_close(second[name], value)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d])
def test_one_value_is_normalised_by_the_running_statistics(make):
    norm = make(3).double()
    norm.running_mean.copy_(torch.randn(3))
    norm.running_var.copy_(torch.rand(3) + 0.5)
    before = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(1, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="more than 1 value"):
        norm(x)
    with SingleValuesNormalised():
        out = norm(x)
    out.sum().backward()
    assert norm.weight.grad.abs().sum() > 0
    torch.testing.assert_close(out, norm.eval()(x))
    torch.testing.assert_close((norm.running_mean, norm.running_var), before, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 2, 1), (1, 3, 4, 5)])
def test_more_values_are_normalised_by_their_own_statistics(shape):
    plain, norm, x = BatchNormAct2d(3), BatchNormAct2d(3), torch.randn(shape)
    with SingleValuesNormalised():
        out = norm(x)
    torch.testing.assert_close(out, plain(x), rtol=0, atol=0)
    torch.testing.assert_close(norm.state_dict(), plain.state_dict(), rtol=0, atol=0)


RESNEST = ("model.backbone.name=resnest14d", "model.backbone.frozen=[]")


@pytest.mark.parametrize(
    ("name", "overrides", "size", "execution"),
    [
        ("nano", (), (32, 32), "dense"),
        ("nano", (), (32, 32), "sparse"),
        ("nano", ("pruner=early",), (32, 32), "masked"),
        ("nano", RESNEST, (64, 96), "dense"),
        ("r18", (), (32, 32), "dense"),
    ],
)
def test_a_single_image_trains_at_any_size(name, overrides, size, execution):
    model = build_detector(name, 2, overrides, pretrained=False).train()
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4]])}]
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = {n: m.running_var.clone() for n, m in norms.items()}
    sizes = {}

    def count(module, inputs):
        if isinstance(inputs[0], torch.Tensor):
            sizes[module] = inputs[0].numel() // inputs[0].shape[1]

    for module in norms.values():
        module.register_forward_pre_hook(count)
    run_step(model, torch.rand(1, 3, *size), targets, execution=execution)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert 1 in sizes.values() or name == "r18" or "pruner=early" in overrides
    for n, module in norms.items():
        if module in sizes:
            changed = not torch.equal(module.running_var, before[n])
            assert changed == (module.training and sizes[module] > 1), n
    assert all(module.running_var.isfinite().all() for module in norms.values())


def test_two_processes_with_one_value_each_have_two_in_all(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)

    def run(which):
        torch.manual_seed(0)
        model = build_detector("nano", 2, pretrained=False).double().train()
        model(images[which], execution="dense")
        return dict(model.named_buffers())

    def work(rank):
        with SyncedBatchNorm():
            return run(slice(rank, rank + 1))

    parts = in_two_processes(work, tmp_path)
    whole = run(slice(None))
    for part in parts:
        for name, value in whole.items():
            torch.testing.assert_close(part[name], value, msg=name)

"""Pruning before the backbone's last stages: the executions against each other."""

from __future__ import annotations

import copy

import pytest
import torch

from sparse_dset import build_detector
from sparse_dset.structures import check_nested
from tests.models.detectors import (
    assert_same_gradients,
    assert_same_outputs,
    make_detector,
    make_targets,
    nested_masks,
)
from tests.models.training import losses_of, run_step

SIZE = (96, 160)  # 3 x 5 cells at stride 32
MODELS = {
    "r18, s3": ("r18", "pruner.stage=s3"),
    "r18, s2": ("r18", "pruner.stage=s2"),
    "r50, s3": ("r50", "pruner.stage=s3"),
    "nano, s3": ("nano", "pruner.stage=s3"),
    "nano, s2": ("nano", "pruner.stage=s2", "model.backbone.frozen=[]"),
    "timm resnet, s3": ("nano", "model.backbone.name=resnet18", *(
        "pruner.stage=s3", "model.backbone.frozen=[]",
    )),
}  # fmt: skip
IMAGES = {"varied": [0.8, 0.5, 0.2], "one and none": [0.6, "one", 0.0], "nothing": [0.0] * 3}


def _images(batch, height=SIZE[0], width=SIZE[1]):
    return torch.rand(batch, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", MODELS)
def test_sparse_equals_masked(name, images, training):
    sparse = make_detector(*MODELS[name]).train(training)
    masked = copy.deepcopy(sparse)
    kept = nested_masks((3, 5), IMAGES[images])
    batch, targets = _images(3), make_targets(3, 0, 1)
    ours = run_step(sparse, batch, targets, kept=kept, execution="sparse")
    theirs = run_step(masked, batch, targets, kept=kept, execution="masked")
    assert_same_outputs(ours, theirs)
    assert_same_gradients(sparse, masked)
    for (buffer_name, buffer), other in zip(sparse.named_buffers(), masked.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-6, atol=1e-6, msg=buffer_name)


@pytest.mark.parametrize("name", ["r18, s3", "nano, s3", "nano, s2"])
def test_sparse_equals_masked_when_padded(name):
    sparse = make_detector(*MODELS[name]).train()
    masked = copy.deepcopy(sparse)
    padding = torch.ones(2, *SIZE, dtype=torch.bool)
    padding[0, :70, :100] = False
    padding[1, :, :90] = False
    batch, targets = _images(2), make_targets(2, 1)
    arguments = {"padding_mask": padding, "keep_ratio": 0.5}
    ours = run_step(sparse, batch, targets, execution="sparse", **arguments)
    theirs = run_step(masked, batch, targets, execution="masked", **arguments)
    assert_same_outputs(ours, theirs)
    assert_same_gradients(sparse, masked)
    check_nested(ours.kept)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_all_executions_agree_when_everything_is_kept(name, padded):
    model, batch = make_detector(*MODELS[name]), _images(2)
    padding = torch.zeros(2, *SIZE, dtype=torch.bool)
    if padded:
        padding[0, 70:], padding[1, :, 90:] = True, True
    run = {e: model(batch, padding_mask=padding, execution=e, keep_ratio=1.0) for e in (
        "dense", "dense_scatter", "sparse", "masked", "auto",
    )}  # fmt: skip
    for out in run.values():
        assert_same_outputs(run["dense"], out)
    assert run["auto"].execution == "dense"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_training_agrees_with_dense_when_everything_is_kept(name, padded):
    """Statistics of a batch too: those of all sites are those of the dense map."""
    dense = make_detector(*MODELS[name]).train()
    sparse = copy.deepcopy(dense)
    batch, targets = _images(2), make_targets(2, 1)
    padding = torch.zeros(2, *SIZE, dtype=torch.bool)
    if padded:
        padding[0, 70:], padding[1, :, 90:] = True, True
    expected = run_step(dense, batch, targets, execution="dense", padding_mask=padding)
    out = run_step(sparse, batch, targets, execution="sparse", keep_ratio=1.0, padding_mask=padding)
    for loss, value in expected.losses.items():
        torch.testing.assert_close(out.losses[loss], value, rtol=1e-5, atol=1e-5)
    assert_same_gradients(dense, sparse)
    for (buffer_name, buffer), other in zip(dense.named_buffers(), sparse.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, rtol=1e-6, atol=1e-6, msg=buffer_name)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_inference_form_is_the_same_network(name):
    model, batch = make_detector(*MODELS[name], dtype=torch.float32), _images(2).float()
    fused = copy.deepcopy(model).fuse()
    for execution, keep_ratio in (("dense", 1.0), ("sparse", 0.4), ("masked", 0.4)):
        arguments = {"execution": execution, "keep_ratio": keep_ratio}
        ours, theirs = fused(batch, **arguments), model(batch, **arguments)
        for a, b in zip(ours.kept, theirs.kept, strict=True):
            assert torch.equal(a, b)
        # Queries of nearly equal scores may change places.
        torch.testing.assert_close(
            ours.pred_logits.amax(-1).sort().values,
            theirs.pred_logits.amax(-1).sort().values,
            rtol=0,
            atol=1e-3,
        )


@torch.no_grad()
def test_pruned_sites_have_no_influence():
    """Stages before the decision see the whole image; later ones only what was kept."""
    model, kept = make_detector("r18", "pruner.stage=s3"), nested_masks((3, 5), [0.5])
    seen = []
    model.backbone.res_layers[2].register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    model(_images(1), kept=kept, execution="sparse")
    assert seen[0].features.shape == (int(kept[0].sum()), 128)
    assert torch.equal(seen[0].support.mask(), kept[0])


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other():
    model, batch = make_detector("nano", "pruner.stage=s3", "pruner.selector=threshold"), _images(3)
    scores = model(batch, execution="sparse").token_scores[0]
    model.pruner.selector = type(model.pruner.selector)(threshold=float(scores.sigmoid().median()))
    together = model(batch, execution="sparse")
    assert len(set(together.num_kept[:, 2].tolist())) > 1
    for i in range(3):
        alone = model(batch[i : i + 1], execution="sparse")
        real = alone.query_mask[0]
        torch.testing.assert_close(
            together.pred_logits[i, together.query_mask[i]], alone.pred_logits[0, real]
        )


def test_the_gate_trains_an_early_scorer():
    batch, targets, models = _images(2), make_targets(2, 1), {}
    for execution in ("sparse", "masked"):
        settings = "pruner=early", "pruner.gate=true"
        models[execution] = model = make_detector("nano", *settings).train()
        torch.manual_seed(5)
        losses = losses_of(model, batch, targets, execution=execution, keep_ratio=0.5)
        sum(v for name, v in losses.items() if name != "loss_cass").backward()
        assert model.pruner.scorer.heads[0].mlp[0].weight.grad.abs().sum() > 0
    assert_same_gradients(models["sparse"], models["masked"])


def test_a_backbone_that_cannot_run_on_kept_sites_says_why():
    settings = "model.backbone.name=mobilenetv3_small_100", "model.backbone.frozen=[]"
    model = build_detector("nano", 3, [*settings, "pruner.stage=s3"], pretrained=False)
    with pytest.raises(ValueError, match="pruner.stage=s3: .* mean, which has no form .*=s5"):
        model.check_decision()
    with pytest.raises(AttributeError, match="mean, which has no form on kept sites"):
        model(torch.rand(1, 3, 64, 64), execution="sparse")

"""What is predicted for an image does not depend on its padding."""

from __future__ import annotations

import pytest
import torch

from tests.models.detectors import assert_same_gradients, make_detector, make_targets
from tests.models.training import losses_of, run_step

EXECUTIONS = ["dense", "dense_scatter", "sparse", "masked"]


def _padded(small, large):
    images = torch.rand(2, *large.shape[1:], dtype=small.dtype)  # the padding holds anything
    images[0, :, : small.shape[2], : small.shape[3]] = small[0]
    images[1] = large[0]
    mask = torch.zeros(2, *large.shape[2:], dtype=torch.bool)
    mask[0, small.shape[2] :] = True
    mask[0, :, small.shape[3] :] = True
    return images, mask


def _pair(small, large, dtype=torch.float64):
    return (torch.rand(1, 3, *size, dtype=dtype) for size in (small, large))


def _assert_same_as_alone(model, small, large, execution, atol):
    images, mask = _padded(small, large)
    arguments = {"execution": execution, "keep_ratio": 0.5}
    with torch.no_grad():
        together = model(images, padding_mask=mask, **arguments)
        for i, image in enumerate((small, large)):
            alone = model(image, **arguments)
            real = together.query_mask[i]
            assert torch.equal(together.num_kept[i], alone.num_kept[0])
            assert torch.equal(together.num_tokens[i], alone.num_tokens[0])
            for kept, own in zip(together.kept, alone.kept, strict=True):
                height, width = own.shape[1:]
                assert torch.equal(kept[i, :height, :width], own[0])
                assert int(kept[i].sum()) == int(own.sum())
            ours = torch.cat([together.pred_logits[i], together.pred_boxes[i]], -1)[real]
            theirs = torch.cat([alone.pred_logits[0], alone.pred_boxes[0]], -1)
            if ours.dtype == torch.float32:  # queries of almost the same score may change places
                nearest = (ours[:, None] - theirs).abs().amax(-1).argmin(1)
                assert len(nearest.unique()) == len(theirs)
                theirs = theirs[nearest]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", ["nano", "r18"])
def test_an_image_gives_the_same_padded_and_alone(name, execution):
    small, large = _pair((64, 64), (160, 128))
    _assert_same_as_alone(make_detector(name), small, large, execution, 1e-7)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_sizes_that_are_no_multiple_of_the_stride(execution):
    small, large = _pair((45, 83), (83, 125))
    _assert_same_as_alone(make_detector(), small, large, execution, 1e-7)


SEE_PADDING = ["pvt_v2_b0", "tiny_vit_5m_224", "poolformer_s12", "mobilevit_xxs"]


def _with_backbone(make_detector, name):
    return make_detector(
        "nano",
        f"model.backbone.name={name}",
        "model.backbone.weights=null",
        "model.backbone.frozen=[]",
    )


@pytest.mark.parametrize("execution", ["dense", "sparse"])
@pytest.mark.parametrize("name", SEE_PADDING)
def test_a_backbone_that_sees_the_whole_image_does_not_see_padding(name, execution):
    model = _with_backbone(make_detector, name)
    _assert_same_as_alone(model, *_pair((64, 64), (128, 192)), execution, 1e-7)
    _assert_same_as_alone(model, *_pair((45, 83), (83, 125)), execution, 1e-7)


def test_such_a_backbone_learns_from_a_padded_image_what_it_learns_from_it_alone():
    alone, targets = _with_backbone(make_detector, "pvt_v2_b0"), make_targets(3)
    padded = _with_backbone(make_detector, "pvt_v2_b0")
    small, large = _pair((64, 83), (160, 128))
    images, mask = _padded(small, large)
    for model, arguments in (
        (alone, {"images": small}),
        (padded, {"images": images[:1], "padding_mask": mask[:1]}),
    ):
        losses = losses_of(model, targets=targets, execution="dense", **arguments)
        sum(losses.values()).backward()
    assert_same_gradients(alone, padded)


@pytest.mark.parametrize("execution", ["dense", "sparse"])
def test_float32(execution):
    small, large = _pair((64, 64), (160, 128), torch.float32)
    _assert_same_as_alone(make_detector(dtype=torch.float32), small, large, execution, 1e-4)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_an_odd_size_equals_its_explicitly_padded_form(execution):
    model, image = make_detector(), torch.rand(1, 3, 83, 125, dtype=torch.float64)
    padded = torch.nn.functional.pad(image, (0, 3, 0, 13), value=0.7)
    mask = torch.ones(1, 96, 128, dtype=torch.bool)
    mask[:, :83, :125] = False
    with torch.no_grad():
        ours = model(image, execution=execution, keep_ratio=0.5)
        theirs = model(padded, padding_mask=mask, execution=execution, keep_ratio=0.5)
    assert ours.num_tokens.tolist() == [[11 * 16, 6 * 8, 3 * 4]]
    torch.testing.assert_close(ours.pred_logits, theirs.pred_logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.pred_boxes, theirs.pred_boxes, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_an_image_of_nothing_but_padding_gives_no_nan(execution, training):
    model = make_detector().train(training)
    mask = torch.zeros(2, 96, 64, dtype=torch.bool)
    mask[1] = True
    images = torch.rand(2, 3, 96, 64, dtype=torch.float64)
    out = run_step(model, images, make_targets(2, 0), padding_mask=mask, execution=execution)
    assert out.num_kept[1].tolist() == out.num_tokens[1].tolist() == [0, 0, 0]
    assert not out.query_mask[1].any()
    assert out.pred_logits.isfinite().all()
    assert out.pred_boxes.isfinite().all()
    assert all(v.isfinite() for v in out.losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_losses_do_not_depend_on_padding(execution):
    model, targets = make_detector(), make_targets(3)
    image, _ = _pair((64, 83), (160, 128))
    images, mask = _padded(image, torch.rand(1, 3, 160, 128, dtype=torch.float64))
    with torch.no_grad():
        arguments = {"execution": execution, "keep_ratio": 0.5}
        alone = losses_of(model, image, targets, **arguments)
        padded = losses_of(model, images[:1], targets, padding_mask=mask[:1], **arguments)
    assert alone.keys() == padded.keys()
    for name, value in alone.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("side", ["left", "top", "middle"])
def test_padding_elsewhere_is_refused(side):
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    if side == "left":
        mask[1, :, :10] = True
    elif side == "top":
        mask[1, :10] = True
    else:
        mask[1, 20:30, 20:30] = True
    with pytest.raises(ValueError, match="image 1 of the batch is not a border on the right"):
        make_detector()(torch.rand(2, 3, 64, 64, dtype=torch.float64), padding_mask=mask)


def test_the_backbones_features_are_zero_in_the_padding():
    model, seen = make_detector(), []
    model.pruner.register_forward_pre_hook(lambda _, arguments: seen.extend(arguments[:2]))
    with torch.no_grad():
        model(torch.rand(1, 3, 45, 83, dtype=torch.float64))
    features, valid_masks = seen
    for feature, valid in zip(features[1:], valid_masks, strict=True):
        assert not feature.movedim(1, -1)[~valid].any()
        assert feature.movedim(1, -1)[valid].any()

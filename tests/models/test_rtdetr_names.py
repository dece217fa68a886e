"""Loading the state dicts of released RT-DETRv2 models."""

from __future__ import annotations

import pytest
import torch

from sparse_dset import build_detector
from sparse_dset.engine.checkpoint import load_checkpoint, load_weights, model_weights
from tests.models.detectors import make_detector

MOE = "{_target_:sparse_dset.models.moe.MoEConfig,num_experts:3,top_k:2,patch_size:%d}"
EXPERTS = (f"model.encoder.moe={MOE % 2}", f"model.decoder.moe={MOE % 1}")


def _released(model):
    """What a released file would hold: no pruner and no heads of ours."""
    state = model.state_dict()
    return {k: v for k, v in state.items() if not k.startswith(("pruner.", "losses."))}


@pytest.fixture(scope="module")
def dense():
    return make_detector()


def _blank(*overrides):
    return build_detector("nano", 3, overrides, pretrained=False).double().eval()


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"ema": {"module": s}}, lambda s: {"model": s}]
)
def test_all_tensors_are_taken(wrap, dense):
    model = _blank()
    released = _released(dense)
    model.load_rtdetr(wrap(released))
    for name, value in model.state_dict().items():
        if name in released:
            assert torch.equal(value, released[name]), name


def test_own_parts_stay(dense):
    model = _blank("model.decoder.background=learned")
    with torch.no_grad():
        model.decoder.background.fill_(0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_rtdetr(_released(dense))
    for name, value in model.state_dict().items():
        if name.startswith(("pruner.", "losses.", "decoder.background")):
            assert torch.equal(value, before[name]), name


def test_derived_buffers_may_be_there_or_not(dense):
    released = _released(dense)
    released["decoder.anchors"] = torch.zeros(1, 8400, 4)
    released["decoder.valid_mask"] = torch.ones(1, 8400, 1, dtype=torch.bool)
    released = {k: v for k, v in released.items() if not k.endswith("num_batches_tracked")}
    _blank().load_rtdetr(released)


def test_experts_start_as_copies_and_give_the_dense_output(dense):
    model = _blank(*EXPERTS)
    model.load_rtdetr(_released(dense))
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = model(images, execution="dense"), dense(images, execution="dense")
    # The gates are float32 and sum to 1 up to their precision.
    torch.testing.assert_close(ours.pred_logits, theirs.pred_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pred_boxes, theirs.pred_boxes, rtol=0, atol=1e-5)
    experts = model.decoder.decoder.layers[1].moe.experts
    for expert in experts.weight1:
        assert torch.equal(expert, dense.decoder.decoder.layers[1].linear1.weight)


def test_everything_that_does_not_fit_is_listed(dense):
    released = _released(dense)
    released["decoder.extra.weight"] = torch.zeros(1)
    del released["encoder.input_proj.0.conv.weight"]
    released["decoder.enc_output.proj.weight"] = torch.zeros(2, 2)
    model = _blank()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="3 entries") as caught:
        model.load_rtdetr(released)
    message = str(caught.value)
    assert "decoder.extra.weight: no such parameter here" in message
    assert "encoder.input_proj.0.conv.weight: missing from the file" in message
    assert "decoder.enc_output.proj.weight: shape (2, 2), here (128, 128)" in message
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_number_of_classes_is_named(dense):
    model = build_detector("nano", 5, pretrained=False)
    with pytest.raises(ValueError, match="right size and num_classes") as caught:
        model.load_rtdetr(_released(dense))
    assert "decoder.enc_score_head.weight: shape (3, 128), here (5, 128)" in str(caught.value)


def test_a_file_without_experts_parts_is_refused(dense):
    released = {k: v for k, v in _released(dense).items() if "linear2" not in k}
    with pytest.raises(ValueError, match="encoder.encoder.0.layers.0.moe.experts.weight2: missing"):
        _blank(*EXPERTS).load_rtdetr(released)


def test_a_released_file_starts_a_training_with_other_classes(dense, tmp_path):
    torch.save({"ema": {"module": _released(dense)}, "last_epoch": 71}, tmp_path / "released.pth")
    model = build_detector("nano", 5, EXPERTS, pretrained=False).double()
    weights = model_weights(load_checkpoint(tmp_path / "released.pth"))
    report = load_weights(model, weights)
    assert report.mismatched
    assert all("score_head" in name or "class_embed" in name for name in report.mismatched)
    assert not report.unexpected
    for name in report.missing:
        assert name.startswith(("pruner.", "losses.")) or ".router." in name
    first = model.decoder.decoder.layers[0].moe.experts.weight1
    dense_weight = weights["decoder.decoder.layers.0.linear1.weight"]
    assert all(torch.equal(expert, dense_weight) for expert in first)

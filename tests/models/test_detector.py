"""The executions of one network against each other."""

from __future__ import annotations

import copy

import pytest
import torch

from sparse_dset import build_detector
from sparse_dset.models.decoder.decoder import NO_QUERY_LOGIT
from sparse_dset.structures import Support
from sparse_dset.structures.geometry import pad_batch
from tests.models.detectors import (
    assert_same_gradients,
    assert_same_outputs,
    make_detector,
    make_targets,
    nested_masks,
)
from tests.models.training import losses_of, run_step

SIZE = (96, 160)  # 3 x 5 cells at stride 32
MOE = "{_target_:sparse_dset.models.moe.MoEConfig,num_experts:4,top_k:2,patch_size:%d}"
VARIANTS = {
    "plain": [],
    "experts": [f"model.encoder.moe={MOE % 1}", f"model.decoder.moe={MOE % 1}"],
    "patches": [f"model.encoder.moe={MOE % 2}", f"model.decoder.moe={MOE % 1}"],
    "background": ["model.decoder.background=learned"],
}
IMAGES = {
    "varied": [0.8, 0.5, 0.2],
    "one and none": [0.6, "one", 0.0],
    "nothing": [0.0, 0.0, 0.0],
}


def _images(batch, height=SIZE[0], width=SIZE[1]):
    return torch.rand(batch, 3, height, width, dtype=torch.float64)


# --- sparse and masked ------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sparse_equals_masked(variant, images, training):
    sparse = make_detector("nano", *VARIANTS[variant]).train(training)
    masked = copy.deepcopy(sparse)
    kept = nested_masks((3, 5), IMAGES[images])
    batch, targets = _images(3), make_targets(3, 0, 1)
    ours = run_step(sparse, batch, targets, kept=kept, execution="sparse")
    theirs = run_step(masked, batch, targets, kept=kept, execution="masked")
    assert all(torch.isfinite(v) for v in ours.losses.values())
    assert [int(n) for n in ours.num_kept.sum(0)] == [int(m.sum()) for m in kept]
    assert_same_outputs(ours, theirs)
    assert_same_gradients(sparse, masked)
    for (name, buffer), other in zip(sparse.named_buffers(), masked.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-6, atol=1e-6, msg=name)


def test_sparse_equals_masked_in_float32():
    model = make_detector(dtype=torch.float32)
    kept = nested_masks((3, 5), [0.6, 0.9])
    images = _images(2).float()
    with torch.no_grad():
        ours, theirs = (model(images, kept=kept, execution=e) for e in ("sparse", "masked"))
    assert_same_outputs(ours, theirs, atol=1e-4)


def test_sparse_equals_masked_when_padded():
    sparse = make_detector("nano", "model.decoder.background=learned").train()
    masked = copy.deepcopy(sparse)
    padding = torch.ones(2, *SIZE, dtype=torch.bool)
    padding[0, :70, :100] = False
    padding[1, :, :90] = False
    kept = nested_masks((3, 5), [0.7, 0.7])
    arguments = {"padding_mask": padding, "kept": kept}
    batch, targets = _images(2), make_targets(2, 1)
    ours = run_step(sparse, batch, targets, execution="sparse", **arguments)
    assert_same_outputs(ours, run_step(masked, batch, targets, execution="masked", **arguments))
    assert_same_gradients(sparse, masked)


def test_gate_lets_the_detection_losses_train_the_scorer():
    batch, targets = _images(2), make_targets(2, 1)
    models = {}
    for execution in ("sparse", "masked"):
        models[execution] = model = make_detector("nano", "pruner.gate=true").train()
        torch.manual_seed(5)
        losses = losses_of(model, batch, targets, execution=execution, keep_ratio=0.5)
        sum(v for name, v in losses.items() if name != "loss_cass").backward()
        assert model.pruner.scorer.heads[0].mlp[0].weight.grad.abs().sum() > 0
    assert_same_gradients(models["sparse"], models["masked"])

    plain = make_detector().train()
    losses = losses_of(plain, batch, targets, keep_ratio=0.5)
    sum(v for name, v in losses.items() if name != "loss_cass").backward()
    assert plain.pruner.scorer.heads[0].mlp[0].weight.grad is None


def test_the_gate_does_not_change_the_output():
    model, images = make_detector("nano", "pruner.gate=true"), _images(2)
    with torch.no_grad():
        out = model(images, keep_ratio=0.5)
        model.pruner.gate = False
        assert_same_outputs(out, model(images, keep_ratio=0.5), atol=1e-12)


# --- dense, dense_scatter and sparse ------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_executions_agree_when_all_is_kept(training):
    batch, targets = _images(2), make_targets(2, 1)
    dense = make_detector("nano", "pruner.keep_ratio=1").train(training)
    models = {e: copy.deepcopy(dense) for e in ("dense_scatter", "sparse", "masked")}
    expected = run_step(dense, batch, targets, execution="dense")
    assert expected.num_kept.tolist() == expected.num_tokens.tolist() == [[240, 60, 15]] * 2
    for execution, model in models.items():
        assert_same_outputs(expected, run_step(model, batch, targets, execution=execution))
        assert_same_gradients(dense, model)


def test_what_ran_is_reported():
    model = make_detector()
    for execution in ("dense", "dense_scatter", "sparse", "masked"):
        out = model(_images(1, 64, 64), execution=execution)
        assert (out.execution, out.backend) == (execution, "reference")
    assert model(_images(1, 64, 64)).execution == "sparse"


@torch.no_grad()
def test_dense_scatter_attends_to_kept_cells_and_fills_the_others_with_zero():
    model, images = make_detector(), _images(2)
    kept = nested_masks((3, 5), [0.6, "one"])
    out = model(images, kept=kept, execution="dense_scatter")

    features = model.backbone(images)[1:]
    projected = [proj(f) for proj, f in zip(model.encoder.input_proj, features, strict=True)]
    filled = torch.zeros_like(projected[2])
    aifi = model.encoder.encoder[0]
    for i, mask in enumerate(kept[2]):
        y, x = mask.nonzero().unbind(1)
        tokens = projected[2][i, :, y, x].T[None]
        tokens, _ = aifi._run(tokens, y[None], x[None], None, torch.tensor([[3, 5]]))
        filled[i, :, y, x] = tokens[0].T
    fused = model.encoder.merge_levels([*projected[:2], filled])
    _, geometry = pad_batch(images, None)
    memory = model.decoder.read(fused)
    expected = model.decoder(memory, geometry).layers[-1]
    torch.testing.assert_close(out.pred_logits, expected.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(out.pred_boxes, expected.boxes, rtol=0, atol=1e-9)
    assert out.num_kept.tolist() == [[240, 60, int(m.sum())] for m in kept[2]]


def test_dense_scatter_prunes_the_levels_asked_for():
    model = make_detector("nano", "pruner.scatter_levels=[s3,s4,s5]")
    kept = nested_masks((3, 5), [0.6])
    out = model(_images(1), kept=kept, execution="dense_scatter")
    for mask, wanted in zip(out.kept, kept, strict=True):
        assert torch.equal(mask, wanted)
    with pytest.raises(ValueError, match="s6"):
        make_detector("nano", "pruner.scatter_levels=[s6]")(_images(1), execution="dense_scatter")


# --- sizes, counts and arguments ------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("execution", ["dense", "dense_scatter", "sparse", "masked"])
def test_more_queries_than_tokens(execution, training):
    model = make_detector("nano", "model.decoder.num_queries=300").train(training)
    out = run_step(
        model, _images(2, 64, 64), make_targets(2, 5), execution=execution, keep_ratio=0.1
    )
    kept = {"dense": 84, "dense_scatter": 81}.get(execution, 21)
    assert out.num_kept.sum(1).tolist() == [kept] * 2
    assert out.num_tokens.tolist() == [[64, 16, 4]] * 2
    # The neck of dense_scatter fills the pruned sites again, and queries may come from them.
    assert out.pred_logits.shape == (2, 21 if execution in ("sparse", "masked") else 84, 3)
    assert out.query_mask.all()
    assert out.pred_logits.isfinite().all()
    assert out.pred_boxes.isfinite().all()
    assert all(v.isfinite() for v in out.losses.values())


def test_images_with_fewer_tokens_get_masked_queries():
    model = make_detector("nano", "model.decoder.num_queries=40")
    kept = nested_masks((3, 5), [0.9, "one", 0.0])
    for execution in ("sparse", "masked"):
        out = model(_images(3), kept=kept, execution=execution)
        assert out.query_mask.sum(1).tolist() == [40, 1, 0]
        assert (out.pred_logits[~out.query_mask] == NO_QUERY_LOGIT).all()
        assert out.pred_boxes.isfinite().all()


def test_masked_queries_are_not_in_the_losses():
    """Images do not touch each other in evaluation, so the sums of the losses add up."""
    model, images, targets = make_detector(), _images(2), make_targets(3, 2)
    kept = nested_masks((3, 5), [0.9, "one"])
    with torch.no_grad():
        both = losses_of(model, images, targets, kept=kept)
        alone = [
            losses_of(
                model, images[i : i + 1], targets[i : i + 1], kept=[m[i : i + 1] for m in kept]
            )
            for i in range(2)
        ]
    for kind in ("vfl", "bbox", "giou"):
        for suffix in ("", "_enc"):
            name = f"loss_{kind}{suffix}"
            wanted = (3 * alone[0][name] + 2 * alone[1][name]) / 5
            torch.testing.assert_close(both[name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(320, 640), (640, 320)])
def test_off_square_images_keep_their_axes(size):
    out = make_detector(dtype=torch.float32)(_images(1, *size).float(), keep_ratio=0.2)
    assert [m.shape[1:] for m in out.kept] == [(size[0] // s, size[1] // s) for s in (8, 16, 32)]
    assert out.num_kept.tolist() == [[640, 160, 40]]
    assert out.pred_logits.shape == (1, 150, 3)


@torch.no_grad()
def test_a_bright_spot_changes_the_scores_around_it():
    images = torch.full((2, 3, 64, 320), 0.5, dtype=torch.float64)
    images[1, :, 2:10, 284:292] = 1.0  # at x = 0.9, y = 0.1
    scores = make_detector()(images).token_scores[0]
    change = (scores[1] - scores[0]).abs()
    y, x = divmod(int(change.argmax()), change.shape[1])
    assert (y, x) in [(0, 8), (0, 9)]  # cells next to it see it too


def test_an_empty_batch_of_objects_trains():
    model = make_detector().train()
    out = run_step(model, _images(2, 64, 64), make_targets(0, 0))
    assert all(v.isfinite() for v in out.losses.values())
    assert not any("_dn_" in name for name in out.losses)


def test_training_gives_every_parameter_a_gradient():
    model = make_detector("nano", *VARIANTS["experts"]).train()
    run_step(model, _images(2), make_targets(3, 2), keep_ratio=0.5)
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_experts_without_any_token_get_zero_gradients(training):
    model = make_detector("nano", *VARIANTS["experts"]).train(training)
    kept = nested_masks((3, 5), [0.0, 0.0])
    out = run_step(model, _images(2), make_targets(2, 1), kept=kept)
    assert all(v.isfinite() for v in out.losses.values())
    for name, parameter in model.named_parameters():
        if ".moe." in name and name.startswith("encoder"):
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"execution": "fast"}, "dense_scatter, sparse, masked, auto; got 'fast'"),
        ({"keep_ratio": 0.0}, r"\(0, 1\]"),
        ({"keep_ratio": 1.5}, r"\(0, 1\]"),
        ({"keep_ratio": True}, r"\(0, 1\]"),
        ({"progress": 1.5}, r"progress must be in \[0, 1\]"),
        ({"kept": [torch.ones(1, 8, 8)] * 3}, "kept must be bool masks of shapes"),
        ({"padding_mask": torch.zeros(1, 64, 64)}, "padding_mask must be bool"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_detector()(_images(1, 64, 64), **arguments)


def test_masks_that_do_not_nest_are_refused():
    kept = [torch.ones(1, n, n, dtype=torch.bool) for n in (8, 4, 2)]
    kept[2][0, 0, 1] = False
    with pytest.raises(ValueError, match="must nest"):
        make_detector()(_images(1, 64, 64), kept=kept)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 64, 64), r"\[B, 3, H, W\]"),
        (torch.rand(1, 1, 64, 64), r"\[B, 3, H, W\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating point"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        make_detector()(images)


def test_progress_goes_from_all_tokens_to_the_target():
    model = make_detector("nano", "pruner.keep_ratio=0.2")
    images = _images(1, 64, 160)
    kept = [int(model(images, progress=p).num_kept[0, 2]) for p in (0.0, 0.5, 1.0)]
    assert kept == [10, 6, 2]


def test_support_and_masks_of_the_output_agree():
    out = make_detector()(_images(2), keep_ratio=0.4)
    assert out.num_kept[:, 2].tolist() == [6, 6]
    for level, mask in enumerate(out.kept):
        assert Support.from_mask(mask).counts().tolist() == out.num_kept[:, level].tolist()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("keep_ratio", "runs"), [(0.4, "sparse"), (1.0, "dense")])
def test_auto_runs_what_suits_and_gives_the_same(keep_ratio, runs, padded):
    model, images = make_detector("nano").eval(), torch.rand(2, 3, 96, 160, dtype=torch.float64)
    padding_mask = torch.zeros(2, 96, 160, dtype=torch.bool)
    padding_mask[1, 70:] = padded
    options = {"keep_ratio": keep_ratio, "padding_mask": padding_mask}
    with torch.no_grad():
        auto = model(images, execution="auto", **options)
        sparse = model(images, execution="sparse", **options)
    assert auto.execution == runs
    torch.testing.assert_close(auto.pred_logits, sparse.pred_logits)
    torch.testing.assert_close(auto.pred_boxes, sparse.pred_boxes)


def test_a_share_of_the_batch_is_for_training_only():
    model, images = make_detector("nano", "pruner.selector=batch"), _images(3)
    images[0] = 0.0  # another kind of picture, with scores of its own
    counts = model(images, execution="sparse", keep_ratio=0.4).num_kept[:, -1]
    assert counts.unique().numel() == 1
    trained = model.train()(images, make_targets(1, 1, 1), execution="sparse", keep_ratio=0.4)
    assert trained.num_kept[:, -1].sum() == counts.sum()
    assert trained.num_kept[:, -1].unique().numel() > 1


@pytest.mark.parametrize("execution", ["dense", "sparse"])
def test_an_export_says_that_it_cannot_be(execution):
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = build_detector("nano", 3, pretrained=False).eval()

        def forward(self, x):
            return self.detector(x, execution=execution).pred_logits

    with pytest.raises(
        Exception, match=f"torch.export and torch.jit.trace cannot capture execution={execution}"
    ):
        torch.export.export(Logits(), (torch.rand(2, 3, 64, 96),))


def test_tracing_says_that_it_cannot_be_and_what_can() -> None:
    model = build_detector("nano", 2, ["model.execution=dense"], pretrained=False).eval()
    with pytest.raises(NotImplementedError, match=r"cannot capture execution=dense: .*export_onnx"):
        torch.jit.trace(model, torch.rand(1, 3, 64, 64), strict=False)

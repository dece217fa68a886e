from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sparse_dset.models.pruner import Threshold, TopK, grown, inherit, make_pruner, select
from sparse_dset.structures import check_nested
from sparse_dset.structures.geometry import STRIDES, Geometry
from tests.models.detectors import make_detector

CHANNELS = (2, 4, 6, 8)


def _features(batch=2, size=(2, 3)):
    return [
        torch.randn(batch, c, size[0] * f, size[1] * f, dtype=torch.float64)
        for c, f in zip(CHANNELS, (8, 4, 2, 1), strict=True)
    ]


def _full(features):
    """Nothing is padding, at strides 8, 16 and 32."""
    return [torch.ones(len(f), *f.shape[2:], dtype=torch.bool) for f in features[-3:]]


def test_a_decision_keeps_every_site_under_kept_cells():
    pruner, features = make_pruner(CHANNELS, keep_ratio=0.5).double(), _features()
    decision = pruner(features, _full(features), pruner.selector)
    (scores,) = decision.token_scores
    assert scores.shape == (2, 2, 3)
    assert [int(m[0].sum()) for m in decision.kept] == [48, 12, 3]
    check_nested(decision.kept)
    threshold = scores[decision.kept[2]].view(2, 3).amin(1)
    others = scores.masked_fill(decision.kept[2], -torch.inf).flatten(1).amax(1)
    assert (threshold > others).all()


def test_inherit_leaves_padding_out():
    valid = Geometry(torch.tensor([[40.0, 70.0]]), (64, 96), True).valid_masks()
    kept = inherit([torch.ones(1, 2, 3, dtype=torch.bool)], valid)
    for mask, inside in zip(kept, valid, strict=True):
        assert torch.equal(mask, inside)
    one = torch.zeros(1, 2, 3, dtype=torch.bool)
    one[0, 1, 2] = True
    fine, middle, coarse = inherit([one], valid)
    assert coarse.nonzero().tolist() == [[0, 1, 2]]
    assert middle.nonzero().tolist() == [[0, 2, 4]]  # the image has 3 x 5 cells there
    assert fine.nonzero().tolist() == [[0, 4, 8]]  # and 5 x 9 here


@pytest.mark.parametrize("levels", [("s5",), ("s3", "s4"), ("s5", "s3"), ("s2",)])
def test_the_scorer_looks_at_its_levels_only(levels):
    pruner, features = make_pruner(CHANNELS, levels=levels).double(), _features()
    valid = _full(features)
    (scores,) = pruner.scorer(features, valid)
    for i, name in enumerate(("s2", "s3", "s4", "s5")):
        changed = [f + 1.0 * torch.randn_like(f) if j == i else f for j, f in enumerate(features)]
        assert torch.equal(pruner.scorer(changed, valid)[0], scores) != (name in levels)


@pytest.mark.parametrize(
    ("context", "expected"), [(1, [[1, 2]]), (3, [[0, 1], [0, 2], [1, 1], [1, 2]])]
)
def test_how_far_a_cell_sees(context, expected):
    pruner, features = make_pruner(CHANNELS, context=context).double(), _features(1)
    (head,) = pruner.scorer.heads
    if head.mix is not None:
        torch.nn.init.normal_(head.mix.weight)
    valid = _full(features)
    (before,) = pruner.scorer(features, valid)
    features[1][0, :, 5, 10] += 1.0  # in cell (1, 2)
    changed = (pruner.scorer(features, valid)[0][0] != before[0]).nonzero().tolist()
    assert changed == expected


@pytest.mark.parametrize("local", [0, 5])
def test_padding_is_no_context(local):
    pruner, features = make_pruner(CHANNELS, context=3, local=local).double(), _features(1)
    torch.nn.init.normal_(pruner.scorer.heads[0].mix.weight)
    valid = _full(features)
    for mask in valid:
        mask[:, :, mask.shape[2] // 3 * 2 :] = False
    for f in features:
        f[..., f.shape[-1] // 3 * 2 :] = 0.0  # as the backbone leaves it
    alone = [f[..., : f.shape[-1] // 3 * 2] for f in features]
    (scores,) = pruner.scorer(features, valid)
    (expected,) = pruner.scorer(alone, _full(alone))
    torch.testing.assert_close(scores[:, :, :2], expected)


@pytest.mark.parametrize(
    ("stage", "levels", "seen"),
    [("s5", None, [1, 2, 3]), ("s3", None, [0, 1]), ("s2", None, [0]), ("s3", ["s3"], [1])],
)
def test_the_scorer_sees_what_is_there(stage, levels, seen):
    pruner = make_pruner(CHANNELS, stage=stage, levels=levels)
    assert pruner.scorer.levels == seen
    assert pruner.is_early == (stage != "s5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": []}, "s2, s3, s4, s5"),
        ({"levels": ["s6"]}, "s2, s3, s4, s5"),
        ({"stage": "s4"}, "s2, s3, s5"),
        ({"stage": "s3", "levels": ["s3", "s4"]}, "s4, which is not there yet .* among s2, s3"),
        ({"context": 2}, "odd"),
        ({"local": -1}, "pruner.local must be a whole number of at least 0"),
        ({"halo": -1}, "pruner.halo must be a whole number of at least 0"),
        ({"finest": "s2"}, "s3, s4 or s5"),
        ({"score_by": "area"}, "learned, norm, random"),
        ({"scatter_levels": ["s2"]}, "some of s3, s4, s5, got"),
        ({"scatter_levels": []}, "some of s3, s4, s5, got"),
        ({"levels": "s3"}, "pruner.levels must be a list"),
        ({"offsets": -1.0}, "pruner.offsets must be by level"),
        ({"offsets": {"s5": float("nan")}}, "pruner.offsets.s5 must be a number"),
        ({"hidden": 0}, "pruner.hidden must be a whole number of at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_pruner(CHANNELS, **settings)


def test_a_halo_keeps_the_neighbours_that_are_there():
    kept = torch.zeros(1, 4, 5, dtype=torch.bool)
    kept[0, 0, 2] = True
    assert grown(kept, 0) is kept
    assert grown(kept, 1)[0].nonzero().tolist() == [[y, x] for y in (0, 1) for x in (1, 2, 3)]
    pruner = make_pruner(CHANNELS, keep_ratio=0.01, halo=9).double()
    valid = Geometry(torch.tensor([[40.0, 70.0]]), (64, 96), True).valid_masks()
    decision = pruner(_features(1), valid, pruner.selector)
    assert all(torch.equal(k, v) for k, v in zip(decision.kept, valid, strict=True))


def test_the_gate_is_one_and_passes_the_gradient_of_the_probability():
    pruner = make_pruner(CHANNELS, gate=True)
    scores = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    feature = torch.randn(1, 4, 8, 12, dtype=torch.float64)
    gated = pruner.gated(feature, [scores])
    torch.testing.assert_close(gated, feature)
    gated.sum().backward()
    slope = scores.sigmoid() * (1 - scores.sigmoid())
    cells = feature.sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2))
    torch.testing.assert_close(scores.grad, (cells * slope).detach())


def test_without_a_gate_the_feature_itself_comes_back():
    feature = torch.randn(1, 4, 8, 12)
    assert make_pruner(CHANNELS).gated(feature, [torch.zeros(1, 2, 3)]) is feature


def test_a_map_is_gated_by_the_finest_cells_that_are_not_finer():
    pruner = make_pruner(CHANNELS, gate=True)
    middle, coarse = (torch.randn(1, n, n, requires_grad=True) for n in (4, 2))
    for size, gate in ((8, middle), (4, middle), (2, coarse)):
        feature = torch.ones(1, 4, size, size)
        (grad,) = torch.autograd.grad(pruner.gated(feature, [middle, coarse]).sum(), gate)
        assert (grad > 0).all()


def _tree_choice(scores, valid, count):
    """Takes the best token whose parent is there already, until ``count`` are taken."""
    levels = [s.masked_fill(~v, -torch.inf) for s, v in zip(scores, valid, strict=True)]
    for below, own in pairwise(levels):  # a cell is worth its best child
        for y, x in torch.cartesian_prod(*(torch.arange(n) for n in own.shape)).tolist():
            best = below[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max()
            own[y, x] = max(own[y, x], best)
    taken = [torch.zeros_like(v) for v in valid]
    for _ in range(count):
        best = max(
            (
                (float(levels[i][y, x]), i, -y, -x)
                for i in range(3)
                for y, x in (valid[i] & ~taken[i]).nonzero().tolist()
                if i == 2 or taken[i + 1][y // 2, x // 2]
            ),
        )
        taken[best[1]][-best[2], -best[3]] = True
    return taken


@pytest.mark.parametrize("seed", range(5))
def test_several_levels_decide_together(seed):
    torch.manual_seed(seed)
    valid = Geometry(torch.tensor([[40.0, 70.0], [64.0, 96.0]]), (64, 96), True).valid_masks()
    scores = [torch.randn(v.shape) for v in valid]
    for ratio in (0.02, 0.3, 0.77, 1.0):
        kept = select(scores, valid, TopK(keep_ratio=ratio))
        check_nested(kept)
        for image in range(2):
            there = [v[image] for v in valid]
            count = max(1, int(ratio * sum(int(v.sum()) for v in there) + 0.5))
            expected = _tree_choice([s[image].clone() for s in scores], there, count)
            assert all(torch.equal(k[image], e) for k, e in zip(kept, expected, strict=True))


@pytest.mark.parametrize("first_row_best", [True, False])
@pytest.mark.parametrize(("height", "width"), [(33, 320), (360, 640), (333, 500)])
def test_cells_that_are_cut_off_by_the_border_count_the_tokens_they_have(
    height, width, first_row_best
):
    sizes = [(-(-height // 32) * 32 // s, -(-width // 32) * 32 // s) for s in STRIDES]
    valid = [
        (torch.arange(h)[:, None] < -(-height // s)) & (torch.arange(w) < -(-width // s))
        for (h, w), s in zip(sizes, STRIDES, strict=True)
    ]
    valid = [mask[None] for mask in valid]
    rows = torch.arange(float(sizes[-1][0]))[None, :, None].expand(1, *sizes[-1])
    kept = select([-rows if first_row_best else rows], valid, TopK(keep_ratio=0.5))
    total, found = (sum(int(m.sum()) for m in masks) for masks in (valid, kept))
    assert found / total == pytest.approx(0.5, abs=0.5 * 21 / total)


def test_a_level_that_does_not_decide_inherits():
    valid = _full(_features(1))
    scores = [torch.full((1, 4, 6), -5.0), torch.full((1, 2, 3), -5.0)]
    scores[0][0, 3, 5] = 5.0
    scores[1][0, 0, 0] = 5.0
    fine, middle, coarse = select(scores, valid, Threshold(threshold=0.5))
    assert coarse[0].nonzero().tolist() == [[0, 0], [1, 2]]  # its own, and that of its child
    assert middle[0].nonzero().tolist() == [[3, 5]]
    assert fine[0].nonzero().tolist() == [[y, x] for y in (6, 7) for x in (10, 11)]
    fine, middle, coarse = select(scores, valid, Threshold(threshold=0.5), halo=1)
    check_nested((fine, middle, coarse))
    assert middle[0].nonzero().tolist() == [[y, x] for y in (2, 3) for x in (4, 5)]


@pytest.mark.parametrize("finest", ["s3", "s5"])
@pytest.mark.parametrize("stage", ["s3", "s5"])
def test_baselines_score_without_training(stage, finest):
    features = _features()
    valid = _full(features)
    by_norm = make_pruner(CHANNELS, stage=stage, finest=finest, score_by="norm")
    at_random = make_pruner(CHANNELS, stage=stage, finest=finest, score_by="random")
    learned = make_pruner(CHANNELS, stage=stage, finest=finest).double()
    shapes = [scores.shape for scores in learned.score(features, valid)]
    for pruner in (by_norm, at_random):
        scores = pruner.score(features, valid)
        assert [s.shape for s in scores] == shapes
        assert not any(s.requires_grad for s in scores)
        check_nested(pruner(features, valid, TopK(keep_ratio=0.3)).kept)
    again = at_random.score(features, valid)
    assert not torch.equal(again[0], at_random.score(features, valid)[0])
    before = by_norm.score(features, valid)[-1]
    for feature in features:
        cell = feature.shape[-1] // 3
        feature[0, :, :cell, :cell] *= 3.0
    changed = (by_norm.score(features, valid)[-1] - before).exp()
    expected = torch.ones_like(changed)
    expected[0, 0, 0] = 3.0
    torch.testing.assert_close(changed, expected)


def test_offsets_move_tokens_from_one_level_to_another():
    images = torch.rand(2, 3, 128, 160)

    def kept(**offsets):
        text = ",".join(f"{level}:{value}" for level, value in offsets.items())
        model = make_detector("nano", "pruner.finest=s4", f"pruner.offsets={{{text}}}")
        out = model.eval()(images, keep_ratio=0.3)
        scores, valid = model.score_tokens(images)
        again = select(scores, valid, model.pruner.selector.with_keep_ratio(0.3))
        assert all(map(torch.equal, again, out.kept))
        return out.num_kept.sum(0).tolist(), out.token_scores

    (plain, scores), (fewer, shifted), (more, _) = kept(), kept(s4=-9.0), kept(s4=9.0)
    assert plain[2] < fewer[2] == 2 * 4 * 5  # every cell of stride 32 comes before those under it
    assert fewer[1] < plain[1] <= more[1]
    assert more[2] <= plain[2]
    assert all(map(torch.equal, scores, shifted))  # what is learnt is not shifted


def test_offsets_are_of_levels_that_decide():
    with pytest.raises(ValueError, match="offsets names 's4'; the levels that decide are s5"):
        make_detector("nano", "pruner.offsets={s4:1.0}")

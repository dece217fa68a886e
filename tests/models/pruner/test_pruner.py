from __future__ import annotations

import pytest
import torch

from sparse_dset.models.geometry import Geometry
from sparse_dset.models.pruner import inherit, make_pruner
from sparse_dset.models.pruner.pruner import grown
from sparse_dset.structures import check_nested

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
    assert decision.token_scores.shape == (2, 2, 3)
    assert [int(m[0].sum()) for m in decision.kept] == [48, 12, 3]
    check_nested(decision.kept)
    threshold = decision.token_scores[decision.kept[2]].view(2, 3).amin(1)
    others = decision.token_scores.masked_fill(decision.kept[2], -torch.inf).flatten(1).amax(1)
    assert (threshold > others).all()


def test_inherit_leaves_padding_out():
    valid = Geometry(torch.tensor([[40.0, 70.0]]), (64, 96), True).valid_masks()
    kept = inherit(torch.ones(1, 2, 3, dtype=torch.bool), valid)
    for mask, inside in zip(kept, valid, strict=True):
        assert torch.equal(mask, inside)
    one = torch.zeros(1, 2, 3, dtype=torch.bool)
    one[0, 1, 2] = True
    fine, middle, coarse = inherit(one, valid)
    assert coarse.nonzero().tolist() == [[0, 1, 2]]
    assert middle.nonzero().tolist() == [[0, 2, 4]]  # the image has 3 x 5 cells there
    assert fine.nonzero().tolist() == [[0, 4, 8]]  # and 5 x 9 here


@pytest.mark.parametrize("levels", [("s5",), ("s3", "s4"), ("s5", "s3"), ("s2",)])
def test_the_scorer_looks_at_its_levels_only(levels):
    pruner, features = make_pruner(CHANNELS, levels=levels).double(), _features()
    valid = _full(features)[-1]
    scores = pruner.scorer(features, valid)
    for i, name in enumerate(("s2", "s3", "s4", "s5")):
        changed = [f + 1.0 * torch.randn_like(f) if j == i else f for j, f in enumerate(features)]
        assert torch.equal(pruner.scorer(changed, valid), scores) != (name in levels)


@pytest.mark.parametrize(
    ("context", "expected"), [(1, [[1, 2]]), (3, [[0, 1], [0, 2], [1, 1], [1, 2]])]
)
def test_how_far_a_cell_sees(context, expected):
    pruner, features = make_pruner(CHANNELS, context=context).double(), _features(1)
    if pruner.scorer.mix is not None:
        torch.nn.init.normal_(pruner.scorer.mix.weight)
    valid = _full(features)[-1]
    before = pruner.scorer(features, valid)
    features[1][0, :, 5, 10] += 1.0  # in cell (1, 2)
    changed = (pruner.scorer(features, valid)[0] != before[0]).nonzero().tolist()
    assert changed == expected


@pytest.mark.parametrize("local", [0, 5])
def test_padding_is_no_context(local):
    pruner, features = make_pruner(CHANNELS, context=3, local=local).double(), _features(1)
    torch.nn.init.normal_(pruner.scorer.mix.weight)
    valid = _full(features)[-1]
    valid[:, :, 2] = False
    for f in features:
        f[..., f.shape[-1] // 3 * 2 :] = 0.0  # as the backbone leaves it
    alone = [f[..., : f.shape[-1] // 3 * 2] for f in features]
    scores = pruner.scorer(features, valid)
    torch.testing.assert_close(scores[:, :, :2], pruner.scorer(alone, valid[:, :, :2]))


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
        ({"local": -1}, "0 or more channels"),
        ({"halo": -1}, "0 or more cells"),
        ({"scatter_levels": ["s2"]}, "among s3, s4, s5"),
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
    gated = pruner.gated(feature, scores)
    torch.testing.assert_close(gated, feature)
    gated.sum().backward()
    slope = scores.sigmoid() * (1 - scores.sigmoid())
    cells = feature.sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2))
    torch.testing.assert_close(scores.grad, (cells * slope).detach())


def test_without_a_gate_the_feature_itself_comes_back():
    feature = torch.randn(1, 4, 8, 12)
    assert make_pruner(CHANNELS).gated(feature, torch.zeros(1, 2, 3)) is feature

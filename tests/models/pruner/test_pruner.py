from __future__ import annotations

import pytest
import torch

from sparse_dset.models.geometry import Geometry
from sparse_dset.models.pruner import inherit, make_pruner
from sparse_dset.structures import check_nested

CHANNELS = (4, 6, 8)


def _features(batch=2, size=(2, 3)):
    return [
        torch.randn(batch, c, size[0] * f, size[1] * f, dtype=torch.float64)
        for c, f in zip(CHANNELS, (4, 2, 1), strict=True)
    ]


def _full(features):
    return [torch.ones(len(f), *f.shape[2:], dtype=torch.bool) for f in features]


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


@pytest.mark.parametrize("levels", [("s5",), ("s3", "s4"), ("s5", "s3")])
def test_the_scorer_looks_at_its_levels_only(levels):
    pruner, features = make_pruner(CHANNELS, levels=levels).double(), _features()
    scores = pruner.scorer(features)
    for i, name in enumerate(("s3", "s4", "s5")):
        changed = [f + 1.0 * torch.randn_like(f) if j == i else f for j, f in enumerate(features)]
        assert torch.equal(pruner.scorer(changed), scores) != (name in levels)


def test_the_score_of_a_cell_depends_on_that_cell_only():
    pruner, features = make_pruner(CHANNELS).double(), _features(1)
    before = pruner.scorer(features)
    features[0][0, :, 5, 10] += 1.0  # in cell (1, 2)
    changed = (pruner.scorer(features) != before).nonzero().tolist()
    assert changed == [[0, 1, 2]]


@pytest.mark.parametrize("levels", [[], ["s2"]])
def test_bad_levels_are_refused(levels):
    with pytest.raises(ValueError, match="s3, s4, s5"):
        make_pruner(CHANNELS, levels=levels)


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

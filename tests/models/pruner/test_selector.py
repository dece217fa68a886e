from __future__ import annotations

import pytest
import torch

from sparse_dset.models.pruner import (
    SELECTORS,
    BatchTopK,
    Mass,
    Threshold,
    TopK,
    check_keep_ratio,
    make_selector,
)

SCORES = torch.logit(torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7, 0.05]]))
ALL = torch.ones(1, 6, dtype=torch.bool)
ONE_EACH = torch.ones(6, dtype=torch.int64)


def _kept(selector, scores=SCORES, valid=ALL):
    return selector(scores, valid, ONE_EACH).int().tolist()


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.01, [1, 0, 0, 0, 0, 0]),
        (0.34, [1, 0, 0, 0, 1, 0]),
        (0.5, [1, 0, 1, 0, 1, 0]),
        (1, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_topk_keeps_a_share(ratio, expected):
    assert _kept(TopK(keep_ratio=ratio)) == [expected]


def test_topk_counts_valid_cells_only():
    valid = torch.tensor([[True] * 6, [True, True, False] * 2])
    kept = TopK(keep_ratio=0.5)(SCORES.expand(2, 6), valid, ONE_EACH)
    assert kept.sum(1).tolist() == [3, 2]
    assert not (kept & ~valid).any()
    assert kept[1].nonzero().flatten().tolist() == [0, 4]


def test_topk_counts_the_tokens_that_come_with_a_cell():
    sizes = torch.tensor([1, 5, 5, 1, 5, 5])  # ranked: 1, 5, 5, 1, 5, 5, which is 22 in all
    for ratio, count in ((0.1, 1), (0.3, 2), (0.5, 3), (0.54, 4), (0.65, 4), (0.7, 5)):
        assert int(TopK(keep_ratio=ratio)(SCORES, ALL, sizes).sum()) == count


def test_a_batch_shares_what_is_kept():
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0, 1.0, 1.0], [6.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    valid = torch.ones(2, 6, dtype=torch.bool)
    for ratio, counts in ((0.3, [3, 1]), (0.5, [5, 1]), (0.1, [1, 1]), (1.0, [6, 6])):
        assert BatchTopK(keep_ratio=ratio)(scores, valid, ONE_EACH).sum(1).tolist() == counts
    assert BatchTopK(2, 9, 0.3).by_image() == TopK(2, 9, 0.3)
    valid[0, 1:3] = False
    kept = BatchTopK(keep_ratio=0.3)(scores, valid, ONE_EACH)
    assert kept.sum(1).tolist() == [2, 1]
    assert kept[0].nonzero().flatten().tolist() == [0, 3]


def test_ties_go_to_the_first_cells():
    assert _kept(TopK(keep_ratio=0.5), torch.zeros(1, 6)) == [[1, 1, 1, 0, 0, 0]]


def test_threshold_keeps_what_reaches_it():
    assert _kept(Threshold(threshold=0.4)) == [[1, 0, 1, 0, 1, 0]]
    assert _kept(Threshold(threshold=0.0)) == [[1] * 6]
    assert _kept(Threshold(threshold=0.99)) == [[1, 0, 0, 0, 0, 0]]


def test_mass_keeps_the_best_cells_that_hold_it():
    # 0.9 + 0.7 + 0.5 of 2.55 is 0.82 of all.
    assert _kept(Mass(mass=0.8)) == [[1, 0, 1, 0, 1, 0]]
    assert _kept(Mass(mass=0.85)) == [[1, 0, 1, 1, 1, 0]]
    assert _kept(Mass(mass=1.0)) == [[1] * 6]


@pytest.mark.parametrize("kind", [Threshold, Mass])
def test_counts_follow_the_content(kind):
    scores = torch.stack([torch.full((6,), 3.0), torch.full((6,), -9.0)])
    scores[1, 0] = 3.0
    kept = kind()(scores, ALL.expand(2, 6), ONE_EACH).sum(1).tolist()
    assert kept[0] > kept[1] == 1


AT_LEAST_TWO = [TopK(2, 4, 0.01), Threshold(2, 4, 1.0), Mass(2, 4, 0.01)]
AT_MOST_TWO = [TopK(1, 2, 1.0), Threshold(1, 2, 0.0), Mass(1, 2, 1.0)]


@pytest.mark.parametrize("selector", AT_LEAST_TWO + AT_MOST_TWO, ids=repr)
def test_counts_stay_within_their_bounds(selector):
    assert _kept(selector) == [[1, 0, 0, 0, 1, 0]]


@pytest.mark.parametrize("selector", AT_MOST_TWO, ids=repr)
def test_a_cap_does_not_hold_before_pruning_sets_in(selector):
    assert _kept(selector.relaxed(0.0)) == [[1] * 6]
    assert _kept(selector.relaxed(1.0)) == [[1, 0, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    "selector",
    [TopK(3), Threshold(3, None, 0.0), Mass(3, None, 1.0), Mass(3, None, 0.5)],
    ids=repr,
)
def test_padding_is_never_kept(selector):
    valid = torch.zeros(2, 6, dtype=torch.bool)
    valid[0, :2] = True  # fewer cells than min_tokens; the second image has none at all
    kept = selector(SCORES.expand(2, 6), valid, ONE_EACH)
    assert torch.equal(kept, valid)


def test_relaxed_runs_from_all_to_the_target():
    for target in (TopK(keep_ratio=0.2), Threshold(threshold=0.6), Mass(mass=0.5)):
        counts = [sum(_kept(target.relaxed(p))[0]) for p in (0.0, 0.5, 1.0)]
        assert counts[0] == 6
        assert counts == sorted(counts, reverse=True)
        assert counts[2] == sum(_kept(target)[0]) < 6
        assert target.relaxed(1.0) == target


def test_the_cap_sets_in_with_the_ratio():
    target = TopK(max_tokens=2, keep_ratio=0.5)
    counts = [sum(_kept(target.relaxed(p))[0]) for p in (0.0, 0.01, 0.4, 0.6, 1.0)]
    assert counts == [6, 6, 5, 4, 2]


def test_another_keep_ratio():
    assert TopK(2, 5, 0.3).with_keep_ratio(0.7) == TopK(2, 5, 0.7)
    for selector in (Threshold(threshold=0.6), Mass(mass=0.5)):
        assert _kept(selector.with_keep_ratio(1)) == [[1] * 6]
        with pytest.raises(ValueError, match="needs pruner.selector=topk"):
            selector.with_keep_ratio(0.5)
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            selector.with_keep_ratio(1.5)


@pytest.mark.parametrize("ratio", [0, 0.0, -0.1, 1.5, float("nan"), "abc", "0.5", True, None])
def test_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(ValueError, match=r"keep_ratio must be .*in \(0, 1\], got"):
        check_keep_ratio(ratio)
    with pytest.raises(ValueError, match=r"pruner.keep_ratio must be"):
        TopK(keep_ratio=ratio)


@pytest.mark.parametrize("name", SELECTORS)
def test_the_cap_holds_at_a_keep_ratio_of_one_too(name):
    calibration = (1.0, 0.5, 0.0) if name == "threshold" else (0.0, 0.5, 1.0)
    selector = make_selector(name, 1.0, 0.5, 0.9, 1, 3, calibration)
    scores = torch.arange(10.0)[None]
    ones = torch.ones_like(scores)
    assert not selector.keeps_all
    assert selector(scores, ones.bool(), ones.long()).nonzero()[:, 1].tolist() == [7, 8, 9]


def test_an_integer_one_is_a_ratio():
    assert check_keep_ratio(1) == 1.0
    assert isinstance(TopK(keep_ratio=1).keep_ratio, float)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Threshold(threshold=1.5),
            "threshold must be .* at least 0 and at most 1, got",
        ),
        (lambda: Mass(mass=0.0), "mass must be a number above 0 and at most 1, got 0.0"),
        (lambda: TopK(min_tokens=0), "min_tokens must be a whole number of at least 1, got 0"),
        (lambda: TopK(5, 4), r"max_tokens \(not below min_tokens\) must be .* at least 5, got 4"),
        (
            lambda: make_selector("best", 0.5, 0.5, 0.9, 1, None),
            "one of topk, batch, threshold, mass",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_make_selector():
    assert make_selector("topk", 0.3, 0.4, 0.8, 2, 9) == TopK(2, 9, 0.3)
    assert make_selector("batch", 0.3, 0.4, 0.8, 2, 9) == BatchTopK(2, 9, 0.3)
    assert make_selector("threshold", 0.3, 0.4, 0.8, 2, 9) == Threshold(2, 9, 0.4)
    assert make_selector("mass", 0.3, 0.4, 0.8, 2, 9) == Mass(2, 9, 0.8)


def test_a_calibration_turns_keep_ratios_into_settings():
    selector = make_selector("threshold", 0.25, 0.9, 0.9, 1, None, [0.8, 0.4, 0.0])
    assert selector.threshold == pytest.approx(0.6)
    assert selector.with_keep_ratio(0.75).threshold == pytest.approx(0.2)
    assert selector.with_keep_ratio(1.0).keeps_all
    assert make_selector("mass", 0.5, 0.9, 0.9, 1, None, [0.0, 0.7, 1.0]).mass == 0.7

from __future__ import annotations

import math

import pytest
import torch

from sparse_dset.data.collate import Batch, collate
from sparse_dset.engine.calibrate import (
    ScoredSet,
    calibrate,
    centres_kept,
    kept_tokens,
    mean_share,
    score_dataset,
)
from sparse_dset.models.pruner import Mass, Threshold
from sparse_dset.structures import enlarged
from sparse_dset.structures.geometry import pad_batch


def _scored(count=40):
    torch.manual_seed(0)
    # Some images ask for much, others for little.
    scores = 2 * torch.randn(count, 6, 10) - torch.rand(count, 1, 1) * 6
    valid = torch.ones(count, 6, 10, dtype=torch.bool)
    valid[::3, :, 7:] = False
    levels = tuple(enlarged(valid, factor) for factor in (4, 2, 1))
    return ScoredSet((scores,), levels, torch.tensor([[0, 0, 0], [1, 20, 39]]))


@pytest.mark.parametrize("selector", [Threshold(), Mass(), Threshold(min_tokens=2)])
@pytest.mark.parametrize("halo", [0, 1])
def test_a_calibrated_selector_keeps_the_share_that_it_was_asked_for(selector, halo):
    scored = _scored()
    settings = calibrate(selector, scored, halo)
    assert len(settings) == 101
    calibrated = type(selector)(selector.min_tokens, None, 0.5, settings)
    for ratio in (0.3, 0.42, 0.755, 0.9):
        kept = kept_tokens(calibrated.with_keep_ratio(ratio), scored, halo)
        assert mean_share(kept, scored) == pytest.approx(ratio, abs=0.012)
        assert not (kept[-1] & ~scored.valid[-1]).any()
        assert kept[-1].flatten(1).sum(1).unique().numel() > 5  # as the content asks
    everything = kept_tokens(calibrated.with_keep_ratio(1.0), scored)
    assert all(torch.equal(k, v) for k, v in zip(everything, scored.valid, strict=True))


def test_several_levels_are_calibrated_by_the_tokens_of_all():
    scored = _scored()
    torch.manual_seed(1)
    fine = torch.randn(scored.valid[1].shape) - 1.0
    scored = ScoredSet((fine, *scored.scores), scored.valid, scored.centres)
    settings = calibrate(Threshold(), scored)
    rule = Threshold(1, None, 0.5, settings).with_keep_ratio(0.3)
    kept = kept_tokens(rule, scored)
    assert mean_share(kept, scored) == pytest.approx(0.3, abs=0.005)
    shares = [float(k.sum() / v.sum()) for k, v in zip(kept, scored.valid, strict=True)]
    assert shares[0] == shares[1] < 0.3 < shares[2]


def test_settings_rise_or_fall_with_the_share():
    scored = _scored()
    threshold, mass = calibrate(Threshold(), scored), calibrate(Mass(), scored)
    assert list(threshold) == sorted(threshold, reverse=True)
    assert list(mass) == sorted(mass)
    assert (threshold[-1], mass[-1]) == (0.0, 1.0)


def test_centres():
    scored = _scored()
    kept = [torch.zeros_like(mask) for mask in scored.valid]
    assert centres_kept(kept, scored) == 0.0
    kept[0][1, 20, 39] = True
    assert centres_kept(kept, scored) == 0.5
    none = ScoredSet(scored.scores, scored.valid, torch.zeros(0, 3, dtype=torch.int64))
    assert math.isnan(centres_kept(kept, none))


class _Model(torch.nn.Module):
    """Scores each cell by its mean brightness."""

    def score_tokens(self, images, padding_mask):
        scores = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 32).squeeze(1)
        _, geometry = pad_batch(images, padding_mask)
        return (scores,), geometry.valid_masks()


def test_a_data_set_of_images_of_different_sizes_is_scored():
    def sample(height, width, boxes):
        target = {
            "labels": torch.zeros(len(boxes), dtype=torch.int64),
            "boxes": torch.tensor(boxes).view(-1, 4),
            "image_id": 0,
            "size": (height, width),
            "orig_size": (height, width),
        }
        return torch.rand(3, height, width), target

    centre, corner = [0.5, 0.5, 0.1, 0.1], [1.0, 1.0, 0.1, 0.1]
    batches = [
        collate([sample(64, 96, [centre]), sample(40, 128, [corner])]),
        collate([sample(96, 64, [])]),
    ]
    assert all(isinstance(batch, Batch) for batch in batches)
    scored = score_dataset(_Model(), batches, progress=False)
    assert scored.scores[0].shape == scored.valid[-1].shape == (3, 3, 4)
    assert scored.valid[-1].flatten(1).sum(1).tolist() == [6, 8, 6]
    # The lower right corner lies in the last site that the second image has.
    assert scored.centres.tolist() == [[0, 4, 6], [1, 4, 15]]

from __future__ import annotations

import math

import pytest
import torch

from sparse_dset.data.collate import Batch, collate
from sparse_dset.engine.calibrate import (
    ScoredSet,
    calibrate,
    centres_kept,
    kept_cells,
    mean_share,
    score_dataset,
)
from sparse_dset.models.pruner import Mass, Threshold


def _scored(count=40):
    torch.manual_seed(0)
    # Some images ask for much, others for little.
    scores = 2 * torch.randn(count, 6, 10) - torch.rand(count, 1, 1) * 6
    valid = torch.ones(count, 6, 10, dtype=torch.bool)
    valid[::3, :, 7:] = False
    return ScoredSet(scores, valid, torch.tensor([[0, 0, 0], [1, 5, 9]]))


@pytest.mark.parametrize("selector", [Threshold(), Mass(), Threshold(min_tokens=2)])
@pytest.mark.parametrize("halo", [0, 1])
def test_a_calibrated_selector_keeps_the_share_that_it_was_asked_for(selector, halo):
    scored = _scored()
    settings = calibrate(selector, scored, halo)
    assert len(settings) == 101
    calibrated = type(selector)(selector.min_tokens, None, 0.5, settings)
    for ratio in (0.3, 0.42, 0.755, 0.9):
        kept = kept_cells(calibrated.with_keep_ratio(ratio), scored, halo)
        assert mean_share(kept, scored) == pytest.approx(ratio, abs=0.012)
        assert not (kept & ~scored.valid).any()
        assert kept.flatten(1).sum(1).unique().numel() > 5  # as the content asks
    assert torch.equal(kept_cells(calibrated.with_keep_ratio(1.0), scored), scored.valid)


def test_settings_rise_or_fall_with_the_share():
    scored = _scored()
    threshold, mass = calibrate(Threshold(), scored), calibrate(Mass(), scored)
    assert list(threshold) == sorted(threshold, reverse=True)
    assert list(mass) == sorted(mass)
    assert (threshold[-1], mass[-1]) == (0.0, 1.0)


def test_centres():
    scored = _scored()
    kept = torch.zeros_like(scored.valid)
    assert centres_kept(kept, scored) == 0.0
    kept[1, 5, 9] = True
    assert centres_kept(kept, scored) == 0.5
    none = ScoredSet(scored.scores, scored.valid, torch.zeros(0, 3, dtype=torch.int64))
    assert math.isnan(centres_kept(kept, none))


class _Model(torch.nn.Module):
    """Scores each cell by its mean brightness."""

    def score_tokens(self, images, padding_mask):
        scores = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 32).squeeze(1)
        valid = torch.ones_like(scores, dtype=torch.bool)
        if padding_mask is not None:
            shown = (~padding_mask).float().unsqueeze(1)
            valid = torch.nn.functional.max_pool2d(shown, 32).squeeze(1) > 0
        return scores, valid


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
    assert scored.scores.shape == scored.valid.shape == (3, 3, 4)
    assert scored.valid.flatten(1).sum(1).tolist() == [6, 8, 6]
    # The lower right corner lies in the last cell that the second image has.
    assert scored.centres.tolist() == [[0, 1, 1], [1, 1, 3]]

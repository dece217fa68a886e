from __future__ import annotations

import numpy as np
import torch

from sparse_dset.analysis.visualize import draw_detections
from sparse_dset.models.predict import Detections


def test_draws_boxes_and_darkens_what_was_pruned() -> None:
    image = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    found = Detections(
        boxes=torch.tensor([[40.0, 40.0, 60.0, 60.0]]),
        scores=torch.tensor([0.9]),
        labels=torch.tensor([0]),
        names=["car"],
        kept=torch.tensor([[False, True], [True, True]]),
    )
    drawn = np.asarray(draw_detections(image, found))
    assert drawn.shape == (64, 64, 3)
    assert (drawn[:20, :20] == 90).all()
    assert (drawn[5, 60] == 200).all()
    assert (drawn[60, 50] != 200).any()
    plain = np.asarray(draw_detections(image, found, show_kept=False))
    assert (plain[:20, :20] == 200).all()

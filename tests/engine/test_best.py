from __future__ import annotations

import math

import pytest

from sparse_dset.engine.best import Best

NAN = math.nan


@pytest.mark.parametrize(
    ("evaluations", "result", "stale"),
    [
        ([(0.2, 1.0), (0.3, 1.0), (0.1, 1.0)], (1.0, 0.3), 1),
        ([(0.9, 0.0), (0.1, 0.5), (0.05, 1.0)], (1.0, 0.1), 1),  # pruned results always win
        ([(0.9, 0.0), (0.8, 0.0)], (0.0, 0.9), 0),  # nothing is stale before the target is reached
        ([(NAN, 1.0)], (-1.0, -1.0), 0),
        ([(NAN, 1.0), (0.0, 1.0)], (1.0, 0.0), 0),
        ([(0.2, 1.0), (NAN, 1.0), (NAN, 1.0)], (1.0, 0.2), 0),
        ([(NAN, 0.0), (0.1, 0.0), (NAN, 1.0)], (0.0, 0.1), 0),
    ],
)
def test_the_best_evaluation(
    evaluations: list[tuple[float, float]], result: tuple[float, float], stale: int
) -> None:
    best = Best()
    for score, progress in evaluations:
        best = best.after(score, progress)
    assert (best.result, best.stale) == (result, stale)
    assert best.exists == (result[1] >= 0)

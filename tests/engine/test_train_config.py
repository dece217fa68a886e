from __future__ import annotations

import pytest

from sparse_dset.engine.train_config import PruningSchedule, TrainConfig


@pytest.mark.parametrize(("power", "middle"), [(0.0, 0.3), (0.5, 0.4), (1.0, 0.5)])
def test_random_ratios_are_even_in_a_power(power: float, middle: float) -> None:
    schedule = PruningSchedule(0.0, "random", (0.1, 0.9), power)
    ratios = [schedule.keep_ratio(0, step) for step in range(400)]
    assert all(0.1 <= ratio <= 0.9 for ratio in ratios)
    assert sum(ratio < middle for ratio in ratios) == pytest.approx(200, abs=30)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0), (10, 0), (12.5, 0.25), (20, 1), (99, 1)])
def test_progress_values(epoch: float, expected: float) -> None:
    assert PruningSchedule(10).progress(epoch) == pytest.approx(expected)
    assert PruningSchedule(0).progress(epoch) == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"epochs": "abc"},
        {"amp": "half"},
        {"accumulate": 1.5},
        {"seed": -1},
        {"patience": 0},
        {"patience": 1, "eval_every": 0},
        {"clip_norm": 0},
        {"ema_decay": 1},
        {"max_steps": 0},
        {"max_minutes": -1},
    ],
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TrainConfig("x", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_epochs": -1},
        {"ratio": "any"},
        {"ratio_range": (0.0, 0.5)},
        {"ratio_range": (0.5, 0.2)},
        {"ratio_range": [0.1]},
        {"ratio_power": -1},
    ],
)
def test_bad_pruning_schedules_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        PruningSchedule(**settings)

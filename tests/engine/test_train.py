from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.train import prepare
from sparse_dset.engine.train_config import TrainConfig


def test_it_tells_where_the_learning_rate_stays_below_its_peak(
    make_trainer: Callable[..., Trainer],
) -> None:
    with pytest.warns(UserWarning, match="3 steps end within optim.warmup_steps=3"):
        make_trainer(epochs=1)


def test_deterministic_algorithms_are_switched_off_again() -> None:
    try:
        prepare(TrainConfig("x", deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        prepare(TrainConfig("x"))
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sparse_dset.engine.ema import ModelEMA


def test_average_follows_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = ModelEMA(model, decay=0.9, tau=5.0)
    expected = 0.0
    for n, value in enumerate([1.0, 4.0, -2.0], start=1):
        nn.init.constant_(model.weight, value)
        ema.update(model)
        decay = 0.9 * (1 - math.exp(-n / 5.0))
        expected = decay * expected + (1 - decay) * value
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-4)


def test_no_warm_up_uses_the_decay_at_once() -> None:
    assert ModelEMA(nn.Linear(1, 1), decay=0.9, tau=0).decay_at(1) == 0.9


def test_statistics_are_averaged_counts_are_copied_and_nothing_has_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = ModelEMA(model, decay=0.75, tau=0.0)
    model.train()(torch.randn(8, 2))
    ema.update(model)
    torch.testing.assert_close(ema.model[1].running_mean, 0.25 * model[1].running_mean)
    torch.testing.assert_close(ema.model[1].running_var, 0.75 + 0.25 * model[1].running_var)
    assert ema.model[1].num_batches_tracked == 1
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_state_goes_round() -> None:
    model = nn.Linear(2, 2)
    first = ModelEMA(model, tau=3.0)
    nn.init.ones_(model.weight)
    first.update(model)
    second = ModelEMA(nn.Linear(2, 2), tau=3.0)
    second.load_state_dict(first.state_dict())
    assert second.updates == 1
    assert torch.equal(second.model.weight, first.model.weight)


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"tau": -1.0}])
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ModelEMA(nn.Linear(1, 1), **settings)

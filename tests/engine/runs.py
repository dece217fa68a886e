from __future__ import annotations

import json

import torch

from sparse_dset.engine.hooks import Averaging
from sparse_dset.engine.loop import Trainer


def rows_of(trainer: Trainer) -> list[dict]:
    lines = (trainer.folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_state(first: Trainer, second: Trainer) -> None:
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    for name, value in first.hook(Averaging).ema.model.state_dict().items():
        assert torch.equal(value, second.hook(Averaging).ema.model.state_dict()[name]), name
    assert first.step == second.step

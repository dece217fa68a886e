"""The data and the trainer of the tests of the loop and its hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparse_dset.data.coco import CocoDetection
from sparse_dset.engine.hooks import Hook
from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.optim import OptimConfig
from sparse_dset.engine.train import make_trainer as make_any_trainer
from sparse_dset.engine.train import prepare
from sparse_dset.engine.train_config import PruningSchedule, TrainConfig
from tests.engine.stubs import StubDetector, open_coco, stub_criterion


@pytest.fixture
def data(tmp_path: Path) -> CocoDetection:
    return open_coco(tmp_path / "data", 6, empty=[2, 3])


@pytest.fixture
def make_trainer(tmp_path: Path, data: CocoDetection) -> Callable[..., Trainer]:
    def make(
        folder: str = "run",
        *,
        model: nn.Module | None = None,
        data: Any = data,
        own_hooks: Sequence[Hook] = (),
        **settings: Any,
    ) -> Trainer:
        defaults: dict[str, Any] = {
            "epochs": 3,
            "batch_size": 2,
            "num_workers": 0,
            "ema_tau": 5.0,
            "pruning": PruningSchedule(1.0),
            "device": "cpu",
            "progress_bar": False,
        }
        config = TrainConfig(str(tmp_path / folder), **{**defaults, **settings})
        prepare(config)
        return make_any_trainer(
            model or StubDetector(),
            stub_criterion,
            data,
            data,
            config=config,
            optim=OptimConfig(lr=1e-2, warmup_steps=3),
            record={"model": {"name": "stub"}, "train": asdict(config)},
            device=torch.device("cpu"),
            own_hooks=own_hooks,
        )

    return make

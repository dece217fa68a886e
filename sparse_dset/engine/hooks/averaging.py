"""The average of the weights, which is what gets evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_dset.engine.ema import ModelEMA
from sparse_dset.engine.hook import Hook, StepResult
from sparse_dset.engine.loop import Trainer


class Averaging(Hook):
    """Moves an average towards the weights after every step that has changed them."""

    def __init__(self, ema: ModelEMA) -> None:
        self.ema = ema

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.applied:
            self.ema.update(trainer.model)

    def state_dict(self) -> dict[str, Any]:
        return {"ema": self.ema.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], source: Path) -> None:
        self.ema.load_state_dict(state["ema"])

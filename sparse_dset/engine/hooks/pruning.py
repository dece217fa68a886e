"""How pruning sets in."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # SyncBatchNorm is one too

from sparse_dset.engine.hook import ForwardOptions, Hook
from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.train_config import PruningSchedule
from sparse_dset.models.executions import DENSE


class Pruning(Hook):
    """Says how far pruning has come, and freezes BatchNorm's statistics once it sets in.

    Args:
        schedule: how it sets in.
        execution: how the network runs then; None as it is configured.
        seed: of random keep ratios.
        freeze_statistics: see `TrainConfig`.
    """

    def __init__(
        self, schedule: PruningSchedule, execution: str | None, seed: int, freeze_statistics: bool
    ) -> None:
        self.schedule = schedule
        self.execution = execution
        self.seed = seed
        self.freeze_statistics = freeze_statistics

    def progress(self, trainer: Trainer) -> float:
        """How far pruning has come, in [0, 1]."""
        return self.schedule.progress(trainer.step / trainer.steps_per_epoch)

    def execution_now(self, trainer: Trainer) -> str | None:
        """How the network runs at this point of the training."""
        return self.execution if self.progress(trainer) > 0 else DENSE.name

    def before_step(self, trainer: Trainer, options: ForwardOptions) -> ForwardOptions:
        progress = self.progress(trainer)
        if self.freeze_statistics and progress > 0:
            _freeze(trainer.model)
        return replace(
            options,
            execution=self.execution_now(trainer),
            keep_ratio=self.schedule.keep_ratio(self.seed, trainer.step),
            progress=progress,
        )


def _freeze(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()

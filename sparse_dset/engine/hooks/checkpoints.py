"""When the state of a training is written."""

from __future__ import annotations

from sparse_dset.engine.hook import EpochResult, Hook, StepResult
from sparse_dset.engine.loop import Trainer


class Checkpoints(Hook):
    """Writes ``last.pt`` now and then and at the end, and ``best.pt`` after the best evaluation.

    Args:
        every: optimizer steps between two writes within an epoch; 0 writes at its end only.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        ends = trainer.step % trainer.steps_per_epoch == 0  # written then anyway
        if self.every and trainer.step % self.every == 0 and not ends:
            trainer.save("last.pt")

    def after_steps(self, trainer: Trainer) -> None:
        trainer.save("last.pt")

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> EpochResult:
        if result.is_best:
            trainer.save("best.pt")
        trainer.save("last.pt")
        return result

"""What a hook is, and the values that hooks are handed and hand on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_dset.engine.loop import Trainer


@dataclass(frozen=True)
class ForwardOptions:
    """How the network runs in a step.

    Attributes:
        execution: its name; None as the model is configured.
        keep_ratio: the target of the step; None leaves it to the model.
        progress: how far pruning has come, in [0, 1].
    """

    execution: str | None = None
    keep_ratio: float | None = None
    progress: float = 1.0


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step has done.

    Attributes:
        values: the numbers that are printed of it, by name: ``loss``, every loss, ``kept_s3``, ...,
            ``lr``, ``progress`` and ``grad_norm`` (before clipping).
        applied: whether the weights have changed; not where a loss scale was too high.
    """

    values: Mapping[str, float]
    applied: bool


@dataclass(frozen=True)
class EpochResult:
    """What is known of an epoch whose steps are done. Hooks add to it, one after the other.

    Attributes:
        epoch: its number, from 1.
        train: the means of the numbers of its steps.
        metrics: of its evaluation; empty where there was none.
        is_best: whether this evaluation is the best one so far.
    """

    epoch: int
    train: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_best: bool = False


class Stop(IntEnum):
    """Whether the training is to end.

    ``SOON``: after the step at hand; what is due at the end of an epoch is still done. ``NOW``:
    that is left to whoever resumes the run.
    """

    NO = 0
    SOON = 1
    NOW = 2


class Hook:
    """Something that is done beside the steps of a training. Every method here does nothing.

    Hooks are called in the order in which the trainer holds them. Every process calls all of them,
    so that a hook may let processes talk to each other; files are the main process's.
    """

    def during_training(self, trainer: Trainer) -> AbstractContextManager[object]:
        """Returns what is entered before the first step and left after the last one."""
        return nullcontext()

    def during_steps(self, trainer: Trainer) -> AbstractContextManager[object]:
        """Returns what is entered before the steps that are left of an epoch, and left after."""
        return nullcontext()

    def before_step(self, trainer: Trainer, options: ForwardOptions) -> ForwardOptions:
        """Returns how the network is to run in the step that follows."""
        return options

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        """Is called after every optimizer step, when ``trainer.step`` counts it already."""

    def after_steps(self, trainer: Trainer) -> None:
        """Is called after the last step of an epoch, and where a training stops within one."""

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> EpochResult:
        """Is called when ``trainer.closed_epochs`` counts the epoch; returns the result."""
        return result

    def wants_stop(self, trainer: Trainer) -> Stop:
        """Tells, after every step, whether the training is to end."""
        return Stop.NO

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs: plain values and tensors, entries of the checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], source: Path) -> None:
        """Takes over what ``state_dict`` gave.

        Args:
            state: the whole checkpoint.
            source: the file that it was read from.
        """

"""The settings of a training."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from sparse_dset.checks import check_list, check_number
from sparse_dset.engine.coco_evaluator import MAX_DETECTIONS
from sparse_dset.engine.evaluate import Precision, check_precision
from sparse_dset.models.executions import find_execution


@dataclass(frozen=True)
class PruningSchedule:
    """How pruning sets in during training.

    Attributes:
        warmup_epochs: epochs without pruning; over as many again the keep ratio falls linearly
            from 1 to its target. 0 prunes fully from the start.
        ratio: ``fixed`` is the target of the configuration; ``random`` draws a target for every
            step, so that one checkpoint serves every ratio.
        ratio_range: lowest and highest random target, in (0, 1].
        ratio_power: of the ratio, the power that is drawn evenly: 1 is the ratio itself, less
            favours low ones; 0 is the logarithm.
    """

    warmup_epochs: float = 10.0
    ratio: Literal["fixed", "random"] = "fixed"
    ratio_range: tuple[float, float] = (0.1, 1.0)
    ratio_power: float = 1.0

    def __post_init__(self) -> None:
        # A list from a configuration file becomes a tuple: the value is frozen.
        check_list("train.pruning.ratio_range", self.ratio_range)
        object.__setattr__(self, "ratio_range", tuple(self.ratio_range))
        for name in ("warmup_epochs", "ratio_power"):
            check_number(f"train.pruning.{name}", getattr(self, name), at_least=0)
        if self.ratio not in ("fixed", "random"):
            raise ValueError(f"ratio must be fixed or random, got {self.ratio!r}")
        for ratio in self.ratio_range:
            check_number("train.pruning.ratio_range", ratio, above=0, at_most=1)
        if len(self.ratio_range) != 2 or self.ratio_range[0] > self.ratio_range[1]:
            raise ValueError(
                "train.pruning.ratio_range must be the lowest and the highest ratio, got "
                f"{list(self.ratio_range)}"
            )

    def progress(self, epoch: float) -> float:
        """How far pruning has come, in [0, 1], after ``epoch`` epochs (fractions count)."""
        if self.warmup_epochs == 0:
            return 1.0
        return min(max(epoch / self.warmup_epochs - 1.0, 0.0), 1.0)

    def keep_ratio(self, seed: int, step: int) -> float | None:
        """The target of a step, the same in every process; None leaves it to the model."""
        if self.ratio == "fixed":
            return None
        low, high = self.ratio_range
        place = random.Random(f"{seed}-{step}").random()
        power = self.ratio_power
        if power == 0:
            return low * (high / low) ** place
        return (low**power + (high**power - low**power) * place) ** (1.0 / power)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the loop.

    Attributes:
        output_dir: folder of ``last.pt``, ``best.pt``, ``results.jsonl`` and ``tensorboard/``.
        epochs: length of the training, and of the learning-rate schedule.
        batch_size: images per process and forward pass.
        accumulate: forward passes per optimizer step. Their losses and gradients add up to those of
            one large batch; but BatchNorm takes the statistics, and a selector that ranks a batch
            as a whole the tokens, of each alone. What the losses are divided by is known once all
            of the step's images have been seen: they pass twice, the first time without gradients.
        num_workers: loader processes; 0 loads in the training process.
        execution: how the model runs once pruning has set in; None as the model is configured.
        pruning: how pruning sets in.
        freeze_statistics: once pruning sets in (or would, in a training without it), BatchNorm
            normalises by its running statistics and leaves them as they are. Those of kept tokens
            differ from one keep ratio to the next, and no running average fits them all; frozen
            ones, of dense maps, are the same for every ratio and every execution. They come from a
            warm-up or with the weights that training starts from.
        sync_statistics: BatchNorm takes the statistics of all processes together.
        amp: ``off``, ``bf16`` or ``fp16`` (with loss scaling).
        clip_norm: largest gradient norm; None does not clip.
        ema_decay, ema_tau: see `ModelEMA`.
        eval_every: epochs between evaluations; the last epoch is always evaluated. 0: never.
        patience: stop after so many evaluations in a row without a better AP; None: never. Those
            before pruning has reached its target do not count, where the training prunes at all.
        eval_batch_size: images per forward pass of the evaluation.
        max_detections: of the evaluation, see `CocoEvaluator`.
        save_every_steps: optimizer steps between two writes of ``last.pt`` within an epoch;
            0 writes it at the ends of epochs only.
        log_every: optimizer steps between two points in TensorBoard.
        max_steps: stop after this optimizer step (counted from the very start), to be resumed.
        max_minutes: stop after so many minutes of this run, to be resumed.
        seed: of everything.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of PyTorch; None keeps its choice.
        deterministic: use deterministic algorithms only.
        progress_bar: show one.
    """

    output_dir: str
    epochs: int = 72
    batch_size: int = 8
    accumulate: int = 1
    num_workers: int = 4
    execution: str | None = None
    pruning: PruningSchedule = field(default_factory=PruningSchedule)
    freeze_statistics: bool = False
    sync_statistics: bool = False
    amp: Precision = "off"
    clip_norm: float | None = 10.0
    ema_decay: float = 0.9999
    ema_tau: float = 2000.0
    eval_every: int = 1
    patience: int | None = None
    eval_batch_size: int = 8
    max_detections: int = MAX_DETECTIONS
    save_every_steps: int = 200
    log_every: int = 20
    max_steps: int | None = None
    max_minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    deterministic: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        for name in (
            *("epochs", "batch_size", "accumulate", "eval_batch_size", "log_every"),
            "max_detections",
        ):
            check_number(f"train.{name}", getattr(self, name), at_least=1, whole=True)
        for name in ("num_workers", "eval_every", "save_every_steps", "seed"):
            check_number(f"train.{name}", getattr(self, name), at_least=0, whole=True)
        for name in ("patience", "max_steps", "threads"):
            if getattr(self, name) is not None:
                check_number(f"train.{name}", getattr(self, name), at_least=1, whole=True)
        for name in ("clip_norm", "max_minutes"):
            if getattr(self, name) is not None:
                check_number(f"train.{name} (null: no limit)", getattr(self, name), above=0)
        check_number("train.ema_decay", self.ema_decay, at_least=0, below=1)
        check_number("train.ema_tau", self.ema_tau, at_least=0)
        if self.patience is not None and not self.eval_every:
            raise ValueError(
                f"train.patience={self.patience} counts evaluations, and train.eval_every=0 makes "
                "none: set train.eval_every=1, or patience to null"
            )
        if self.execution is not None:
            find_execution(self.execution)
        check_precision(self.amp)
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"train.device must be auto, cpu or cuda, got {self.device!r}")
        if not isinstance(self.pruning, PruningSchedule):
            raise ValueError(
                f"train.pruning must be a schedule, got {self.pruning!r}; a training without "
                "pruning has train.execution=dense"
            )

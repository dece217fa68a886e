"""A training with the usual hooks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from sparse_dset.engine import distributed, hooks
from sparse_dset.engine.ema import ModelEMA
from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.optim import OptimConfig
from sparse_dset.engine.randomness import seed_everything, set_deterministic
from sparse_dset.engine.step import Criterion
from sparse_dset.engine.train_config import TrainConfig
from sparse_dset.ops.costs import MEASURED, prepare_cpu


def prepare(config: TrainConfig, costs: str = MEASURED) -> None:
    """Sets threads, seeds and determinism, before the model is built.

    Args:
        config: of the training.
        costs: see ``ops.costs.prepare_cpu``.
    """
    prepare_cpu(config.threads, costs)
    set_deterministic(config.deterministic)
    seed_everything(config.seed)


def make_trainer(
    model: nn.Module,
    criterion: Criterion,
    train_set: Dataset,
    val_set: Dataset | None,
    *,
    config: TrainConfig,
    optim: OptimConfig,
    record: Mapping[str, Any],
    device: torch.device,
    prunes: bool = True,
    own_hooks: Sequence[hooks.Hook] = (),
) -> Trainer:
    """Makes a trainer that evaluates, averages, logs, and writes checkpoints.

    Args:
        model: the detector, on the CPU; it is moved to the device.
        criterion: the losses of a forward pass, called as a ``losses.Criterion``.
        train_set: the training images.
        val_set: the images to evaluate on; None skips evaluation.
        config: the loop's settings.
        optim: the optimizer's settings.
        record: the resolved configuration that goes into checkpoints, plain values only.
        device: where to train.
        prunes: see ``hooks.Evaluation``.
        own_hooks: called after the others, and before a checkpoint is written.
    """
    model.to(device)
    ema = ModelEMA(model, config.ema_decay, config.ema_tau)
    trainer = Trainer(
        model,
        criterion,
        train_set,
        [
            *_usual_hooks(ema, val_set, config, record, prunes),
            *own_hooks,
            hooks.Checkpoints(config.save_every_steps),
        ],
        config=config,
        optim=optim,
        record=record,
        device=device,
    )
    if optim.warmup_steps >= trainer.total_steps:
        warnings.warn(
            f"the training's {trainer.total_steps} steps end within optim.warmup_steps="
            f"{optim.warmup_steps}: the learning rate never reaches {optim.lr:g}",
            stacklevel=2,
        )
    return trainer


def _usual_hooks(
    ema: ModelEMA,
    val_set: Dataset | None,
    config: TrainConfig,
    record: Mapping[str, Any],
    prunes: bool,
) -> list[hooks.Hook]:
    """In their order: what an epoch's result needs comes before what tells of it."""
    folder = Path(config.output_dir)
    pruning = hooks.Pruning(config.pruning, config.execution, config.seed, config.freeze_statistics)
    usual: list[hooks.Hook] = [
        hooks.Signals(),
        hooks.Limits(config.max_steps, config.max_minutes),
        pruning,
        hooks.Averaging(ema),
        hooks.StepMeans(),
        hooks.Evaluation(ema.model, val_set, config, pruning, prunes),
        hooks.ResultRows(folder, record),
    ]
    if distributed.is_main():
        usual.append(hooks.TensorBoard(folder / "tensorboard", config.log_every))
        if config.progress_bar:
            usual.append(hooks.ProgressBar())
    return usual

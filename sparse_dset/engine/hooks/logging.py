"""What is told of a training: a progress bar, rows of results, TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sparse_dset.engine import distributed
from sparse_dset.engine.hook import EpochResult, Hook, StepResult
from sparse_dset.engine.loggers import append_row, environment, now, shown
from sparse_dset.engine.loop import Trainer


class StepMeans(Hook):
    """Adds up the numbers of an epoch's steps; their means belong to the epoch's result."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        for name, value in result.values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> EpochResult:
        means = {name: value / trainer.steps_per_epoch for name, value in self.sums.items()}
        self.sums = {}
        return replace(result, train=means)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any], source: Path) -> None:
        self.sums = state["sums"]


class ProgressBar(Hook):
    """Shows how far the epoch has come, its loss and its learning rate."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    @contextmanager
    def during_steps(self, trainer: Trainer) -> Iterator[None]:
        epoch, done = divmod(trainer.step, trainer.steps_per_epoch)
        epochs = trainer.total_steps // trainer.steps_per_epoch
        desc = f"epoch {epoch + 1}/{epochs}"
        with tqdm(total=trainer.steps_per_epoch, initial=done, desc=desc) as self._bar:
            yield
        self._bar = None

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if self._bar is not None:
            values = result.values
            self._bar.update()
            self._bar.set_postfix(loss=f"{values['loss']:.3f}", lr=f"{values['lr']:.1e}")


class ResultRows(Hook):
    """Appends a row per epoch to ``results.jsonl``, and prints its loss and AP.

    Args:
        folder: of the file.
        record: the configuration, which every row holds.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self.record = record

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> EpochResult:
        if not distributed.is_main():
            return result
        metrics = dict(result.metrics)
        row = {
            "kind": "epoch",
            "epoch": result.epoch,
            "step": trainer.step,
            "time": now(),
            "train": dict(result.train),
            "val": metrics,
            "skipped_steps": trainer.skipped_steps,
            "environment": environment(trainer.device),
            "config": self.record,
        }
        append_row(self.folder / "results.jsonl", row)
        told = [f"{name} {shown(metrics[name], '.4f')}" for name in ("AP", "AP50") if metrics]
        loss = shown(result.train.get("loss"), ".4f")
        tqdm.write(" ".join([f"epoch {result.epoch}: loss {loss}", *told]))
        return result


class TensorBoard(Hook):
    """Draws the numbers of steps and evaluations.

    Args:
        folder: of its files.
        every: optimizer steps between two points.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every
        self._writer: SummaryWriter | None = None

    @contextmanager
    def during_training(self, trainer: Trainer) -> Iterator[None]:
        with SummaryWriter(str(self.folder), purge_step=trainer.step or None) as self._writer:
            yield
        self._writer = None

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if trainer.step % self.every == 0:
            self._draw("train", result.values, trainer.step)

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> EpochResult:
        finite = {name: value for name, value in result.metrics.items() if math.isfinite(value)}
        self._draw("val", finite, trainer.step)
        return result

    def _draw(self, group: str, values: Mapping[str, float], step: int) -> None:
        assert self._writer is not None
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

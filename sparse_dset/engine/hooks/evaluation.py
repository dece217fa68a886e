"""Evaluation at the ends of epochs, and the best of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from sparse_dset.engine import distributed
from sparse_dset.engine.best import Best
from sparse_dset.engine.checkpoint import load_checkpoint
from sparse_dset.engine.evaluate import evaluate, evaluation_loader
from sparse_dset.engine.hook import EpochResult, Hook, Stop
from sparse_dset.engine.hooks.pruning import Pruning
from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.randomness import local_seed
from sparse_dset.engine.train_config import TrainConfig
from sparse_dset.files import atomic_write


class Evaluation(Hook):
    """Evaluates, remembers the best result, and ends a training that no longer gets better.

    Args:
        model: what is evaluated: the averaged weights.
        val_set: the images to evaluate on; None: there is no evaluation.
        config: of the training.
        pruning: says how the model runs.
        prunes: whether pruning sets in at any time; what is measured before cannot be compared
            with what is measured then.

    Attributes:
        metrics: of the last evaluation.
        best: the best one.
    """

    def __init__(
        self,
        model: nn.Module,
        val_set: Dataset | None,
        config: TrainConfig,
        pruning: Pruning,
        prunes: bool,
    ) -> None:
        self.model = model
        self.val_set = val_set
        self.config = config
        self.pruning = pruning
        self.prunes = prunes
        self.folder = Path(config.output_dir)
        self.metrics: dict[str, float] = {}
        self.best = Best()

    @contextmanager
    def during_training(self, trainer: Trainer) -> Iterator[None]:
        yield
        if self._is_stale() and distributed.is_main():
            tqdm.write(f"ended: {self.best.stale} evaluations without a better AP")

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> EpochResult:
        metrics = self._evaluate(trainer, result.epoch)
        self.metrics = metrics or self.metrics
        former, progress = self.best, self.pruning.progress(trainer) if self.prunes else 1.0
        self.best = former.after(metrics.get("AP", math.nan), progress)
        is_best = self.best.result != former.result
        return replace(result, metrics=metrics, is_best=is_best)

    def _evaluate(self, trainer: Trainer, epoch: int) -> dict[str, float]:
        config, every = self.config, self.config.eval_every
        if self.val_set is None or not every or (epoch % every and epoch != config.epochs):
            return {}
        # Each process has its own BatchNorm statistics; the checkpoint has those of the main one.
        distributed.share_buffers(self.model)
        with local_seed(config.seed):
            return evaluate(
                self.model,
                evaluation_loader(
                    self.val_set, config.eval_batch_size, num_workers=config.num_workers
                ),
                self.val_set,
                execution=self.pruning.execution_now(trainer),
                device=trainer.device,
                amp=config.amp,
                max_detections=config.max_detections,
                progress=config.progress_bar,
            )

    def _is_stale(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.best.stale >= patience

    def wants_stop(self, trainer: Trainer) -> Stop:
        return Stop.SOON if self._is_stale() else Stop.NO

    def state_dict(self) -> dict[str, Any]:
        return {
            "metrics": self.metrics,
            "best": list(self.best.result),
            "stale_evaluations": self.best.stale,
        }

    def load_state_dict(self, state: Mapping[str, Any], source: Path) -> None:
        self.metrics = state["metrics"]
        self.best = Best(tuple(state["best"]), state["stale_evaluations"])
        if self.best.exists and not self._has_best(source.parent):
            if distributed.is_main():
                tqdm.write(
                    f"the best.pt of AP {self.best.result[1]:.4f} is neither in {self.folder} nor "
                    f"beside {source}: the best evaluation from here on becomes best.pt"
                )
            self.best = Best(stale=self.best.stale)

    def _has_best(self, source: Path) -> bool:
        """Whether the output folder has the best checkpoint; one of another folder is copied."""
        if source.resolve() == self.folder.resolve():
            return (self.folder / "best.pt").is_file()
        best = source / "best.pt"
        if not best.is_file() or load_checkpoint(best).get("best") != list(self.best.result):
            return False  # of another run, or of this one further on
        if distributed.is_main():
            with best.open("rb") as theirs, atomic_write(self.folder / "best.pt") as own:
                shutil.copyfileobj(theirs, own)
        return True

"""The training loop: steps and epochs. What is done beside them is done by hooks.

A resumed run is the uninterrupted one to the bit. From three processes on, sums over the processes
are in another order after a resumption, and it is the same run but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sparse_dset.data.collate import Batch, collate
from sparse_dset.engine import distributed
from sparse_dset.engine.checkpoint import load_checkpoint, save_checkpoint
from sparse_dset.engine.hook import EpochResult, ForwardOptions, Hook, Stop
from sparse_dset.engine.loading import batches_of, init_worker
from sparse_dset.engine.optim import OptimConfig, build_optimizer, build_scheduler
from sparse_dset.engine.randomness import (
    SeededDataset,
    epoch_batches,
    rng_state,
    seed_everything,
    set_rng_state,
)
from sparse_dset.engine.resume import changed_settings
from sparse_dset.engine.step import Criterion, OptimizerStep
from sparse_dset.engine.train_config import TrainConfig
from sparse_dset.models.wrapped_names import without_wrappers

Kind = TypeVar("Kind", bound=Hook)


class Trainer:
    """Trains a network, and keeps the state from which the training can go on.

    ``engine.train.make_trainer`` makes one with the usual hooks.

    Args:
        model: the network, on the device.
        criterion: the losses of a forward pass.
        train_set: the training images.
        hooks: called in this order, see ``Hook``.
        config: the loop's settings.
        optim: the optimizer's settings.
        record: the resolved configuration that goes into checkpoints, plain values only.
        device: where to train.

    Attributes:
        step: optimizer steps done, over all epochs.
        closed_epochs: epochs of which everything is done, their evaluation too.
        skipped_steps: steps that changed nothing, because a loss scale was too high.
        steps_per_epoch: optimizer steps of one epoch.
        total_steps: optimizer steps of the whole training.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        train_set: Dataset,
        hooks: Sequence[Hook],
        *,
        config: TrainConfig,
        optim: OptimConfig,
        record: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.model = model
        self.train_set = train_set
        self.hooks = tuple(hooks)
        self.config = config
        self.record = dict(record)
        self.device = device
        self.folder = Path(config.output_dir)
        self.steps_per_epoch = math.ceil(len(self._batches(0)) / config.accumulate)
        self.total_steps = self.steps_per_epoch * config.epochs
        optimizer = build_optimizer(model, optim)
        scheduler = build_scheduler(optimizer, optim, self.total_steps)
        self.optimizer_step = OptimizerStep(model, criterion, optimizer, scheduler, config, device)
        self.step = 0
        self.closed_epochs = 0
        self.skipped_steps = 0
        # The processes share their first weights, but not what they draw while training.
        seed_everything(config.seed + distributed.rank())

    def hook(self, kind: type[Kind]) -> Kind:
        """Returns the hook of a class, of which there is one."""
        (found,) = (hook for hook in self.hooks if isinstance(hook, kind))
        return found

    def fit(self) -> None:
        """Trains to the end, or until a hook stops it; the state is then in ``last.pt``.

        Raises:
            RuntimeError: a loss or a gradient is not finite; the message names the term and the
                images. ``last.pt`` stays as it was last written.
            SystemExit: SIGTERM or SIGINT came; the checkpoint was written first.
        """
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.during_training(self))
            if self.step >= (self.closed_epochs + 1) * self.steps_per_epoch:
                self._close_epoch()
            while self.step < self.total_steps and not self._stop():
                stop = self._run_steps()
                for hook in self.hooks:
                    hook.after_steps(self)
                if self.step % self.steps_per_epoch == 0 and stop < Stop.NOW:
                    self._close_epoch()

    def _run_steps(self) -> Stop:
        """Takes the steps that are left of the epoch."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        self.model.train()
        stop = Stop.NO
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.during_steps(self))
            batches = stack.enter_context(batches_of(self._loader(epoch, done)))
            while not stop and (group := list(islice(batches, self.config.accumulate))):
                self._take_step([batch.to(self.device) for batch in group])
                stop = self._stop()
        return stop

    def _take_step(self, batches: list[Batch]) -> None:
        options = ForwardOptions()
        for hook in self.hooks:
            options = hook.before_step(self, options)
        result = self.optimizer_step(batches, options, self.step)
        self.step += 1
        self.skipped_steps += not result.applied
        for hook in self.hooks:
            hook.after_step(self, result)

    def _close_epoch(self) -> None:
        self.closed_epochs += 1
        result = EpochResult(self.closed_epochs)
        for hook in self.hooks:
            result = hook.after_epoch(self, result)

    def _stop(self) -> Stop:
        """What the hooks of all processes want together."""
        wanted = max((hook.wants_stop(self) for hook in self.hooks), default=Stop.NO)
        return Stop(distributed.largest(wanted, self.device))

    def save(self, name: str) -> None:
        """Writes the whole state to a file in the output folder (the main process does)."""
        states = distributed.gather(rng_state())
        if not distributed.is_main():
            return
        entries: dict[str, Any] = self.optimizer_step.state_dict()
        for hook in self.hooks:
            entries |= hook.state_dict()
        save_checkpoint(
            self.folder / name,
            model_state=self.model.state_dict(),
            config=self.record,
            rng=states,
            run=self._run_layout(),
            step=self.step,
            epoch=self.step // self.steps_per_epoch,
            closed_epochs=self.closed_epochs,
            skipped_steps=self.skipped_steps,
            **entries,
        )

    def resume(self, path: str | Path) -> None:
        """Continues from a checkpoint as if the run had never stopped.

        Raises:
            ValueError: the file is no training checkpoint, or the run would not go on as it was:
                a setting that bears on what is learnt has changed, or the number of images or of
                processes.
        """
        state = load_checkpoint(path)
        if "optimizer" not in state or "run" not in state:
            raise ValueError(
                f"{path} has no training state to resume; start from it with weights={path}"
            )
        changed = {
            **changed_settings(self._run_layout(), state["run"]),
            **changed_settings(self.record, state["config"]),
        }
        if changed:
            raise ValueError(
                f"cannot resume exactly from {path}, these settings differ (now, then): {changed}; "
                f"set them back, or start a new run from the weights with weights={path}"
            )
        self.model.load_state_dict(without_wrappers(state["model"]))
        self.optimizer_step.load_state_dict(state)
        self.step = state["step"]
        self.closed_epochs = state["closed_epochs"]
        self.skipped_steps = state["skipped_steps"]
        for hook in self.hooks:
            hook.load_state_dict(state, Path(path))
        set_rng_state(state["rng"][distributed.rank()])

    def _run_layout(self) -> dict[str, int]:
        """What the order of the images and the meaning of a step depend on."""
        return {
            "seed": self.config.seed,
            "batch_size": self.config.batch_size,
            "accumulate": self.config.accumulate,
            "num_images": len(self.train_set),  # type: ignore[arg-type]
            "processes": distributed.world_size(),
        }

    def _batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        return epoch_batches(
            len(self.train_set),  # type: ignore[arg-type]
            self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def _loader(self, epoch: int, done: int) -> DataLoader:
        """The rest of an epoch after ``done`` optimizer steps."""
        return DataLoader(
            SeededDataset(self.train_set, self.config.seed),
            batch_sampler=self._batches(epoch)[done * self.config.accumulate :],
            collate_fn=collate,
            num_workers=self.config.num_workers,
            worker_init_fn=init_worker,
            # An own generator: the default draws the workers' seed from the global one.
            generator=torch.Generator().manual_seed(self.config.seed),
        )

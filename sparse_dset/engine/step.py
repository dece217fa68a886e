"""One optimizer step: forward passes, their losses, backward passes, clipping, the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sparse_dset.data.collate import Batch
from sparse_dset.engine import distributed
from sparse_dset.engine.evaluate import AMP_DTYPES
from sparse_dset.engine.hook import ForwardOptions, StepResult
from sparse_dset.engine.randomness import rng_state, set_rng_state
from sparse_dset.engine.step_values import PassNumbers, step_values
from sparse_dset.engine.teacher import teacher_maps
from sparse_dset.engine.train_config import TrainConfig
from sparse_dset.losses.totals import StepTotals, over_the_step
from sparse_dset.models.synced_norm import SyncedBatchNorm

Criterion = Callable[..., dict[str, Tensor]]
"""Called as a ``losses.Criterion``: with output, targets, totals and the teacher's maps."""


class OptimizerStep:
    """Takes the steps of a training.

    Args:
        model: the network, on its device.
        criterion: the losses of a forward pass.
        optimizer, scheduler: both take a step where the gradients are finite.
        config: of the training.
        device: where the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self.model = model
        self.network = _over_processes(model, device)
        self.criterion = criterion
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.config = config
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")

    def __call__(self, batches: list[Batch], options: ForwardOptions, number: int) -> StepResult:
        """Takes a step.

        Args:
            batches: of its forward passes, on the device.
            options: how the network runs in all of them.
            number: of the step, for messages.

        Raises:
            RuntimeError: a loss or a gradient is not finite; the message names the term and the
                images.
        """
        totals = self._totals(batches, options)
        passes = []
        for position, batch in enumerate(batches):
            with self._synced(position == len(batches) - 1):
                loss, numbers = self._losses(batch, options, totals)
                self.scaler.scale(loss).backward()
            passes.append(numbers)
        values = step_values(passes)
        values["lr"] = self.optimizer.param_groups[0]["lr"]
        values["progress"] = options.progress
        values["grad_norm"], applied = self._update(batches, number)
        return StepResult(values, applied)

    @torch.no_grad()
    def _totals(self, batches: list[Batch], options: ForwardOptions) -> dict[str, Tensor] | None:
        """What the losses of several forward passes are divided by, counted in all of them.

        It depends on what the network says: the cells that it keeps, the experts that it chooses,
        the boxes that fit. A single pass counts for itself.
        """
        if len(batches) == 1:
            return None
        distributed.share_buffers(self.model)  # as the first of the passes does
        random, buffers = rng_state(), [buffer.clone() for buffer in self.model.buffers()]
        passes = []
        for batch in batches:
            totals = StepTotals()
            self._forward(self.model, batch, options, totals)
            passes.append(totals.own)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        set_rng_state(random)
        return over_the_step(passes)

    def _synced(self, is_last: bool) -> AbstractContextManager:
        """Processes exchange gradients once per optimizer step, in its last backward pass."""
        if is_last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def _losses(
        self, batch: Batch, options: ForwardOptions, totals: dict[str, Tensor] | None
    ) -> tuple[Tensor, PassNumbers]:
        """The total loss of a forward pass, and what is printed of it."""
        out, terms = self._forward(self.network, batch, options, StepTotals(totals))
        if not terms:
            raise ValueError("the criterion returned no losses; it must return at least one")
        total = torch.stack([term.float() for term in terms.values()]).sum()
        numbers = torch.stack([term.detach().float() for term in terms.values()]).tolist()
        losses = dict(zip(terms, numbers, strict=True))
        _check_finite(losses, batch)
        return total, PassNumbers(
            losses, out.num_kept.sum(0).tolist(), out.num_tokens.sum(0).tolist()
        )

    def _forward(
        self, network: nn.Module, batch: Batch, options: ForwardOptions, totals: StepTotals
    ) -> tuple[Any, dict[str, Tensor]]:
        """The output of a forward pass, and its losses."""
        enabled = self.config.amp != "off"
        synced = SyncedBatchNorm() if self.config.sync_statistics else nullcontext()
        with (
            synced,
            torch.autocast(self.device.type, AMP_DTYPES.get(self.config.amp), enabled=enabled),
        ):
            out = network(
                batch.images,
                batch.targets,
                padding_mask=batch.padding_mask,
                execution=options.execution,
                keep_ratio=options.keep_ratio,
                progress=options.progress,
            )
            teacher = None
            if self._needs_teacher(out):
                teacher = teacher_maps(self.model, batch.images, batch.padding_mask)  # type: ignore[arg-type]
            return out, self.criterion(out, batch.targets, totals, teacher)

    def _needs_teacher(self, out: Any) -> bool:
        return bool(getattr(self.criterion, "distill", 0)) and out.supervised.pruned

    def _update(self, batches: list[Batch], number: int) -> tuple[float, bool]:
        """Clips and applies the gradients; gives their norm, and whether they were applied."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        total = get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = float(total)
        applied = math.isfinite(norm)
        if applied:
            if self.config.clip_norm is not None:
                clip_grads_with_norm_(parameters, self.config.clip_norm, total)
            self.scaler.step(self.optimizer)
            self.scheduler.step()
        elif self.config.amp == "fp16" and self.scaler.get_scale() >= 1.0:
            # The loss scale was too high and is lowered now. Below 1 it is not the scale.
            norm = 0.0
        else:
            raise RuntimeError(
                f"the gradient of {self._first_bad_gradient()} is not finite at step {number}, "
                f"images {_image_ids(batches)}; the last checkpoint is kept"
            )
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, applied

    def _first_bad_gradient(self) -> str:
        bad = (
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        )
        return next(bad, "all parameters together (of none alone: it is too large)")

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as entries of the checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` gave, from a whole checkpoint."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])


def _over_processes(model: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)


def _check_finite(losses: Mapping[str, float], batch: Batch) -> None:
    bad = next((name for name, value in losses.items() if not math.isfinite(value)), None)
    if bad is not None:
        raise RuntimeError(
            f"the loss term {bad} is {losses[bad]} for the images {_image_ids([batch])}; "
            "the last checkpoint is kept"
        )


def _image_ids(batches: list[Batch]) -> list[int]:
    return [target["image_id"] for batch in batches for target in batch.targets]

"""The training loop: resumable, limited by time or steps, on one process or many.

A resumed run is the uninterrupted one to the bit. From three processes on, sums over the processes
are in another order after a resumption, and it is the same run but for rounding.
"""

from __future__ import annotations

import math
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # SyncBatchNorm is one too
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sparse_dset.checks import check_list, check_number
from sparse_dset.data.collate import Batch, collate
from sparse_dset.engine import distributed
from sparse_dset.engine.best import Best
from sparse_dset.engine.checkpoint import load_checkpoint, save_checkpoint
from sparse_dset.engine.coco_evaluator import MAX_DETECTIONS
from sparse_dset.engine.ema import ModelEMA
from sparse_dset.engine.evaluate import (
    AMP_DTYPES,
    Precision,
    check_precision,
    evaluate,
    evaluation_loader,
)
from sparse_dset.engine.loading import batches_of, init_worker
from sparse_dset.engine.loggers import append_row, environment, now, shown
from sparse_dset.engine.optim import OptimConfig, build_optimizer, build_scheduler
from sparse_dset.engine.randomness import (
    SeededDataset,
    epoch_batches,
    local_seed,
    rng_state,
    seed_everything,
    set_deterministic,
    set_rng_state,
)
from sparse_dset.engine.resume import changed_settings
from sparse_dset.engine.step_values import PassNumbers, step_values
from sparse_dset.engine.teacher import teacher_maps
from sparse_dset.files import atomic_write
from sparse_dset.losses.totals import StepTotals, over_the_step
from sparse_dset.models.executions import DENSE, find_execution
from sparse_dset.models.synced_norm import SyncedBatchNorm
from sparse_dset.models.wrapped_names import without_wrappers
from sparse_dset.ops.costs import set_threads


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
        ema_decay: see `ModelEMA`.
        ema_tau: see `ModelEMA`.
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


class Trainer:
    """Trains a detector and keeps its state on the disk.

    Args:
        model: the detector, on the CPU; it is moved to the device.
        criterion: the losses of a forward pass, called as a ``losses.Criterion``.
        train_set: the training images.
        val_set: the images to evaluate on; None skips evaluation.
        config: the loop's settings.
        optim: the optimizer's settings.
        record: the resolved configuration that goes into checkpoints, plain values only.
        device: where to train.
        prunes: whether pruning sets in at any time; what is measured before cannot be compared
            with what is measured then.

    Attributes:
        step: optimizer steps done, over all epochs.
        steps_per_epoch: optimizer steps of one epoch.
        total_steps: optimizer steps of the whole training.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[..., dict[str, Tensor]],
        train_set: Dataset,
        val_set: Dataset | None,
        *,
        config: TrainConfig,
        optim: OptimConfig,
        record: Mapping[str, Any],
        device: torch.device,
        prunes: bool = True,
    ) -> None:
        self.config = config
        self.record = dict(record)
        self.device = device
        self.train_set = train_set
        self.val_set = val_set
        self.folder = Path(config.output_dir)
        self.model = model.to(device)
        self.criterion = criterion
        self.ema = ModelEMA(self.model, config.ema_decay, config.ema_tau)
        self.network = self._wrap()
        self.steps_per_epoch = math.ceil(len(self._batches(0)) / config.accumulate)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.optimizer = build_optimizer(self.model, optim)
        self.scheduler = build_scheduler(self.optimizer, optim, self.total_steps)
        if optim.warmup_steps >= self.total_steps:
            warnings.warn(
                f"the training's {self.total_steps} steps end within optim.warmup_steps="
                f"{optim.warmup_steps}: the learning rate never reaches {optim.lr:g}",
                stacklevel=2,
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.prunes = prunes
        self.step = 0
        self.closed_epochs = 0
        self.skipped_steps = 0
        self.sums: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.best = Best()
        # The processes share their first weights, but not what they draw while training.
        seed_everything(config.seed + distributed.rank())

    def fit(self) -> dict[str, float]:
        """Trains to the end, or to a limit or a signal; the state is then in ``last.pt``.

        Returns:
            The numbers of the last evaluation.

        Raises:
            RuntimeError: a loss or a gradient is not finite; the message names the term and the
                images. ``last.pt`` stays as it was last written.
            SystemExit: SIGTERM or SIGINT came; the checkpoint was written first.
        """
        started = time.monotonic()
        with self._writer() as writer, _caught_signals() as signals:
            if self.step >= (self.closed_epochs + 1) * self.steps_per_epoch:
                self._close_epoch(writer)
            while self.step < self._last_step and not self._is_stale():
                for _ in self._epoch_steps(writer):
                    if self._must_stop(started, signals):
                        break
                    if self._is_save_due():
                        self.save("last.pt")
                finished = self.step % self.steps_per_epoch == 0
                stopped = self._must_stop(started, signals)
                interrupted = distributed.any_process(bool(signals), self.device)
                self.save("last.pt")
                if finished and not interrupted:
                    self._close_epoch(writer)
                if stopped:
                    break
        if self._is_stale() and distributed.is_main():
            tqdm.write(f"ended: {self.best.stale} evaluations without a better AP")
        if signals:
            raise SystemExit(128 + signals[0])
        return self.metrics

    def save(self, name: str) -> None:
        """Writes the whole state to a file in the output folder (the main process does)."""
        states = distributed.gather(rng_state())
        if not distributed.is_main():
            return
        save_checkpoint(
            self.folder / name,
            model_state=self.model.state_dict(),
            config=self.record,
            ema=self.ema.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            scaler=self.scaler.state_dict(),
            rng=states,
            run=self._run_layout(),
            step=self.step,
            epoch=self.step // self.steps_per_epoch,
            closed_epochs=self.closed_epochs,
            skipped_steps=self.skipped_steps,
            sums=self.sums,
            metrics=self.metrics,
            best=list(self.best.result),
            stale_evaluations=self.best.stale,
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
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.closed_epochs = state["closed_epochs"]
        self.skipped_steps = state["skipped_steps"]
        self.sums = state["sums"]
        self.metrics = state["metrics"]
        self.best = Best(tuple(state["best"]), state["stale_evaluations"])
        if self.best.exists and not self._has_best(Path(path).parent):
            if distributed.is_main():
                tqdm.write(
                    f"the best.pt of AP {self.best.result[1]:.4f} is neither in {self.folder} nor "
                    f"beside {path}: the best evaluation from here on becomes best.pt"
                )
            self.best = Best(stale=self.best.stale)
        set_rng_state(state["rng"][distributed.rank()])

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

    def _wrap(self) -> nn.Module:
        if distributed.world_size() == 1:
            return self.model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=ids)

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

    def _epoch_steps(self, writer: SummaryWriter | None) -> Iterator[int]:
        """Runs the optimizer steps that are left of the epoch, one per item."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        self.model.train()
        bar = tqdm(
            total=self.steps_per_epoch,
            initial=done,
            desc=f"epoch {epoch + 1}/{self.config.epochs}",
            disable=not (self.config.progress_bar and distributed.is_main()),
        )
        with bar, batches_of(self._loader(epoch, done)) as batches:
            while group := list(islice(batches, self.config.accumulate)):
                values = self._optimizer_step([batch.to(self.device) for batch in group])
                self._note(values, writer)
                bar.update()
                bar.set_postfix(loss=f"{values['loss']:.3f}", lr=f"{values['lr']:.1e}")
                yield self.step

    def _optimizer_step(self, batches: list[Batch]) -> dict[str, float]:
        progress = self._progress()
        keep_ratio = self.config.pruning.keep_ratio(self.config.seed, self.step)
        if self.config.freeze_statistics and progress > 0:
            _freeze_statistics(self.model)
        totals = self._totals(batches, progress, keep_ratio)
        passes = []
        for position, batch in enumerate(batches):
            with self._synced(position == len(batches) - 1):
                loss, numbers = self._losses(batch, progress, keep_ratio, totals)
                self.scaler.scale(loss).backward()
            passes.append(numbers)
        values = step_values(passes)
        values["lr"] = self.optimizer.param_groups[0]["lr"]
        values["progress"] = progress
        values["grad_norm"] = self._update(batches)
        self.step += 1
        return values

    @torch.no_grad()
    def _totals(
        self, batches: list[Batch], progress: float, keep_ratio: float | None
    ) -> dict[str, Tensor] | None:
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
            self._run(self.model, batch, progress, keep_ratio, totals)
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
        self,
        batch: Batch,
        progress: float,
        keep_ratio: float | None,
        totals: dict[str, Tensor] | None,
    ) -> tuple[Tensor, PassNumbers]:
        """The total loss of a forward pass, and what is printed of it."""
        out, terms = self._run(self.network, batch, progress, keep_ratio, StepTotals(totals))
        if not terms:
            raise ValueError("the criterion returned no losses; it must return at least one")
        total = torch.stack([term.float() for term in terms.values()]).sum()
        numbers = torch.stack([term.detach().float() for term in terms.values()]).tolist()
        losses = dict(zip(terms, numbers, strict=True))
        _check_finite(losses, batch)
        return total, PassNumbers(
            losses, out.num_kept.sum(0).tolist(), out.num_tokens.sum(0).tolist()
        )

    def _run(
        self,
        network: nn.Module,
        batch: Batch,
        progress: float,
        keep_ratio: float | None,
        totals: StepTotals,
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
                execution=self.config.execution if progress > 0 else DENSE.name,
                keep_ratio=keep_ratio,
                progress=progress,
            )
            teacher = None
            if self._needs_teacher(out):
                teacher = teacher_maps(self.model, batch.images, batch.padding_mask)  # type: ignore[arg-type]
            return out, self.criterion(out, batch.targets, totals, teacher)

    def _needs_teacher(self, out: Any) -> bool:
        return bool(getattr(self.criterion, "distill", 0)) and find_execution(out.execution).prunes

    def _update(self, batches: list[Batch]) -> float:
        """Clips and applies the gradients; gives their norm before the clipping."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        total = get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = float(total)
        if math.isfinite(norm):
            if self.config.clip_norm is not None:
                clip_grads_with_norm_(parameters, self.config.clip_norm, total)
            self.scaler.step(self.optimizer)
            self.scheduler.step()
            self.ema.update(self.model)
        elif self.config.amp == "fp16" and self.scaler.get_scale() >= 1.0:
            # The loss scale was too high and is lowered now. Below 1 it is not the scale.
            self.skipped_steps += 1
            norm = 0.0
        else:
            raise RuntimeError(
                f"the gradient of {self._first_bad_gradient()} is not finite at step {self.step}, "
                f"images {_image_ids(batches)}; the last checkpoint is kept"
            )
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _first_bad_gradient(self) -> str:
        bad = (
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        )
        return next(bad, "all parameters together (of none alone: it is too large)")

    def _progress(self) -> float:
        return self.config.pruning.progress(self.step / self.steps_per_epoch)

    def _note(self, values: dict[str, float], writer: SummaryWriter | None) -> None:
        """Adds a step to the epoch's sums and, now and then, to TensorBoard."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if writer is not None and self.step % self.config.log_every == 0:
            for name, value in values.items():
                writer.add_scalar(f"train/{name}", value, self.step)

    def _close_epoch(self, writer: SummaryWriter | None) -> None:
        """Evaluates when it is due, writes the epoch's row and the checkpoints."""
        epoch = self.closed_epochs + 1
        train = {name: value / self.steps_per_epoch for name, value in self.sums.items()}
        metrics = self._evaluate(epoch)
        self.closed_epochs = epoch
        self.sums = {}
        self.metrics = metrics or self.metrics
        if distributed.is_main():
            self._report(epoch, train, metrics, writer)
        former, progress = self.best, self._progress() if self.prunes else 1.0
        self.best = former.after(metrics.get("AP", math.nan), progress)
        if self.best.result != former.result:
            self.save("best.pt")
        self.save("last.pt")

    def _evaluate(self, epoch: int) -> dict[str, float]:
        every = self.config.eval_every
        if self.val_set is None or not every or (epoch % every and epoch != self.config.epochs):
            return {}
        # Each process has its own BatchNorm statistics; the checkpoint has those of the main one.
        distributed.share_buffers(self.ema.model)
        with local_seed(self.config.seed):
            return evaluate(
                self.ema.model,
                evaluation_loader(
                    self.val_set, self.config.eval_batch_size, num_workers=self.config.num_workers
                ),
                self.val_set,
                execution=self.config.execution if self._progress() > 0 else DENSE.name,
                device=self.device,
                amp=self.config.amp,
                max_detections=self.config.max_detections,
                progress=self.config.progress_bar,
            )

    def _report(
        self,
        epoch: int,
        train: dict[str, float],
        metrics: dict[str, float],
        writer: SummaryWriter | None,
    ) -> None:
        row = {
            "kind": "epoch",
            "epoch": epoch,
            "step": self.step,
            "time": now(),
            "train": train,
            "val": metrics,
            "skipped_steps": self.skipped_steps,
            "environment": environment(self.device),
            "config": self.record,
        }
        append_row(self.folder / "results.jsonl", row)
        told = [f"{name} {shown(metrics[name], '.4f')}" for name in ("AP", "AP50") if metrics]
        tqdm.write(" ".join([f"epoch {epoch}: loss {shown(train.get('loss'), '.4f')}", *told]))
        if writer is not None:
            for name, value in metrics.items():
                if not math.isfinite(value):
                    continue  # n/a has no point
                writer.add_scalar(f"val/{name}", value, self.step)

    def _is_stale(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.best.stale >= patience

    def _is_save_due(self) -> bool:
        every = self.config.save_every_steps
        return bool(every) and self.step % every == 0

    def _must_stop(self, started: float, signals: list[int]) -> bool:
        config = self.config
        minutes = (time.monotonic() - started) / 60.0
        late = config.max_minutes is not None and minutes >= config.max_minutes
        enough = self.step >= self._last_step
        return distributed.any_process(bool(late or enough or signals), self.device)

    @property
    def _last_step(self) -> int:
        limit = self.config.max_steps
        return self.total_steps if limit is None else min(self.total_steps, limit)

    @contextmanager
    def _writer(self) -> Iterator[SummaryWriter | None]:
        if not distributed.is_main():
            yield None
            return
        with SummaryWriter(
            str(self.folder / "tensorboard"), purge_step=self.step or None
        ) as writer:
            yield writer


def prepare(config: TrainConfig) -> None:
    """Sets threads, seeds and determinism, before the model is built."""
    set_threads(config.threads)
    set_deterministic(config.deterministic)
    seed_everything(config.seed)


def _freeze_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _check_finite(losses: Mapping[str, float], batch: Batch) -> None:
    bad = next((name for name, value in losses.items() if not math.isfinite(value)), None)
    if bad is not None:
        raise RuntimeError(
            f"the loss term {bad} is {losses[bad]} for the images {_image_ids([batch])}; "
            "the last checkpoint is kept"
        )


def _image_ids(batches: list[Batch]) -> list[int]:
    return [target["image_id"] for batch in batches for target in batch.targets]


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT for an orderly end; a second one interrupts at once."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Accumulated forward passes, in one process or two, take the step of one large batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_dset import build_criterion, build_detector
from sparse_dset.engine.hooks import ForwardOptions, Hook, StepResult
from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.optim import OptimConfig
from sparse_dset.engine.train import make_trainer, prepare
from sparse_dset.engine.train_config import PruningSchedule, TrainConfig
from tests.processes import in_two_processes

CPU = torch.device("cpu")
EXPERTS = (
    "model.encoder.moe={_target_:sparse_dset.models.moe.MoEConfig,num_experts:4,top_k:2}",
    "model.decoder.moe={_target_:sparse_dset.models.moe.MoEConfig,num_experts:3,top_k:1}",
    # So large that one wrong share of the experts shows in the gradients.
    "losses.balance_encoder=0.5",
    "losses.balance_decoder=0.5",
)
EVERY_LOSS = ("pruner.keep_ratio=0.6", "losses.distill=1.0", *EXPERTS)
CROWDS = (0, 6, 13, 28)
NO_NOISE = "model.decoder.num_denoising=0"


class _Crowds(torch.utils.data.Dataset):
    """Images of different sizes with so many objects each."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        generator = torch.Generator().manual_seed(index)
        count = self.counts[index]
        size = 0.05 + 0.3 * torch.rand(count, 2, generator=generator)
        center = size / 2 + (1 - size) * torch.rand(count, 2, generator=generator)
        target = {
            "labels": torch.randint(2, (count,), generator=generator),
            "boxes": torch.cat([center, size], 1),
            "image_id": index,
        }
        return torch.rand(3, 64, 64 + 32 * (index % 2), generator=generator), target


class _Recorder(Hook):
    """Keeps the numbers and the gradients of a step.

    Attributes:
        values: what is printed of it.
        gradients: of each parameter that has one.
    """

    def __init__(self) -> None:
        self.values: Mapping[str, float] = {}
        self.gradients: dict[str, Tensor] = {}

    def before_step(self, trainer: Trainer, options: ForwardOptions) -> ForwardOptions:
        def note(*_: Any) -> None:
            for name, parameter in trainer.model.named_parameters():
                if parameter.grad is not None:
                    self.gradients[name] = parameter.grad.clone()

        trainer.optimizer_step.optimizer.register_step_pre_hook(note)
        return options

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        self.values = result.values


@cache
def _model(*overrides: str) -> Any:
    torch.manual_seed(3)
    model = build_detector("nano", 2, overrides, pretrained=False)
    model.train()(torch.rand(4, 3, 64, 96), execution="dense")  # statistics of its own
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.state_dict()


def _step(
    folder: Path,
    overrides: Sequence[str],
    counts: Sequence[int],
    batch_size: int,
    accumulate: int,
    *,
    freeze_statistics: bool = True,
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
    """The gradients of one step, its printed numbers and the buffers after it."""
    config = TrainConfig(
        str(folder / f"{batch_size}x{accumulate}"),
        epochs=1,
        batch_size=batch_size,
        accumulate=accumulate,
        num_workers=0,
        pruning=PruningSchedule(0.0),
        freeze_statistics=freeze_statistics,
        clip_norm=None,
        eval_every=0,
        device="cpu",
        progress_bar=False,
    )
    prepare(config)
    model = build_detector("nano", 2, overrides, pretrained=False)
    model.load_state_dict(_model(*overrides))
    model.double()  # what is left is the rounding of the losses, which are float32
    recorder = _Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single step ends within the warm-up
        trainer = make_trainer(
            model,
            build_criterion(overrides),
            _Crowds(counts),
            None,
            config=config,
            optim=OptimConfig(),
            record={"train": asdict(config)},
            device=CPU,
            own_hooks=[recorder],
        )
    trainer.fit()
    return recorder.gradients, dict(recorder.values), dict(model.named_buffers())


def _assert_same_gradients(own: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    assert own.keys() == whole.keys()
    largest = max(float(value.abs().max()) for value in whole.values())
    for name, value in whole.items():
        scale = max(float(value.abs().max()), 1e-3 * largest)
        error = float((own[name] - value).abs().max()) / scale
        assert error < 1e-5, (name, error)


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (("model.execution=dense", "losses.cass.balanced=false", "losses.distill=1.0"), CROWDS),
        (("model.execution=sparse", "pruner.keep_ratio=0.5"), CROWDS),
        (("model.execution=sparse", *EVERY_LOSS), CROWDS),
        (("model.execution=sparse", *EVERY_LOSS), (0, 0, 0, 0)),
        (("model.execution=sparse", "pruner.keep_ratio=0.5"), (0, 0, 0, 1)),
    ],
    ids=["dense", "sparse", "every loss", "no objects", "one object"],
)
def test_passes_add_up_to_one_large_batch(
    overrides: tuple[str, ...], counts: tuple[int, ...], tmp_path: Path
) -> None:
    overrides = (NO_NOISE, *overrides)
    whole, printed, buffers = _step(tmp_path, overrides, counts, 4, 1)
    assert printed["loss"] > 0
    assert ("loss_distill" in printed) == (
        "losses.distill=1.0" in overrides and "model.execution=dense" not in overrides
    )
    for batch_size in (1, 2) if counts == CROWDS else (1,):
        own, numbers, own_buffers = _step(tmp_path, overrides, counts, batch_size, 4 // batch_size)
        _assert_same_gradients(own, whole)
        assert numbers == pytest.approx(printed, rel=1e-5, abs=1e-7)
        torch.testing.assert_close(own_buffers, buffers, rtol=0, atol=0)


@pytest.mark.parametrize(("counts", "accumulate"), [(CROWDS, 2), ((0, 1, 0, 0), 1)])
def test_two_processes_take_the_step_of_one(
    counts: tuple[int, ...], accumulate: int, tmp_path: Path
) -> None:
    overrides = (NO_NOISE, "model.execution=sparse", *EVERY_LOSS)
    whole, printed, _ = _step(tmp_path, overrides, counts, 4, 1)

    def work(rank: int) -> Any:
        return _step(tmp_path, overrides, counts, 2 // accumulate, accumulate)[:2]

    (first, told), (second, told_there) = in_two_processes(work, tmp_path)
    assert told == told_there
    assert told == pytest.approx(printed, rel=1e-5, abs=1e-7)
    _assert_same_gradients(first, whole)
    _assert_same_gradients(second, whole)


def test_denoising_draws_for_each_pass_and_weighs_every_object_once(tmp_path: Path) -> None:
    # Each pass has noise, and a number of groups, of its own: only the size of the losses, which
    # noise moves little, can be that of the large batch.
    counts = (2, 3, 13, 28)
    overrides = ("model.execution=dense", "model.decoder.num_denoising=60")
    _, printed, _ = _step(tmp_path, overrides, counts, 4, 1)
    names = [name for name in printed if "bbox_dn" in name or "giou_dn" in name]
    assert names
    for batch_size in (1, 2):
        _, numbers, _ = _step(tmp_path, overrides, counts, batch_size, 4 // batch_size)
        for name in names:
            assert numbers[name] == pytest.approx(printed[name], rel=0.15), name


def test_looking_ahead_leaves_no_trace(tmp_path: Path) -> None:
    """Statistics are learnt once from each pass, with noise that an unbroken run would draw."""
    overrides = ("model.execution=sparse", "pruner.keep_ratio=0.5")
    twice = [
        _step(tmp_path / str(i), overrides, (3, 5), 1, 2, freeze_statistics=False) for i in range(2)
    ]
    assert twice[0][1] == twice[1][1]
    before = _model(*overrides)
    for name, value in twice[0][2].items():
        if name.endswith("num_batches_tracked"):
            assert int(value) in (int(before[name]), int(before[name]) + 2), name
            mean = name.replace("num_batches_tracked", "running_mean")
            changed = not torch.equal(twice[0][2][mean], before[mean].double())
            assert changed == (int(value) != int(before[name])), name
    assert any(
        int(value) == int(before[name]) + 2
        for name, value in twice[0][2].items()
        if name.endswith("num_batches_tracked")
    )

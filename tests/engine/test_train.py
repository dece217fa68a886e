from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_dset.data.coco import CocoDetection
from sparse_dset.engine.checkpoint import load_checkpoint
from sparse_dset.engine.optim import OptimConfig
from sparse_dset.engine.randomness import SeededDataset, epoch_batches
from sparse_dset.engine.train import PruningSchedule, TrainConfig, Trainer, prepare
from tests.engine.conftest import stub_criterion

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path, open_coco: Callable[..., CocoDetection]) -> CocoDetection:
    return open_coco(tmp_path / "data", 6, empty=[2, 3])


@pytest.fixture
def make_trainer(
    tmp_path: Path, data: CocoDetection, stub_detector: type[nn.Module]
) -> Callable[..., Trainer]:
    def make(
        folder: str = "run", *, model: nn.Module | None = None, data: Any = data, **settings: Any
    ) -> Trainer:
        defaults: dict[str, Any] = {
            "epochs": 3,
            "batch_size": 2,
            "num_workers": 0,
            "ema_tau": 5.0,
            "pruning": PruningSchedule(1.0),
            "device": "cpu",
            "progress_bar": False,
        }
        config = TrainConfig(str(tmp_path / folder), **{**defaults, **settings})
        prepare(config)
        return Trainer(
            model or stub_detector(),
            stub_criterion,
            data,
            data,
            config=config,
            optim=OptimConfig(lr=1e-2, warmup_steps=3),
            record={"model": {"name": "stub"}, "train": asdict(config)},
            device=CPU,
        )

    return make


def rows_of(trainer: Trainer) -> list[dict]:
    lines = (trainer.folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_state(first: Trainer, second: Trainer) -> None:
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    for name, value in first.ema.model.state_dict().items():
        assert torch.equal(value, second.ema.model.state_dict()[name]), name
    assert first.step == second.step


@pytest.mark.parametrize("stop", [1, 3, 5, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_broken_and_resumed_run_ends_bit_for_bit_as_an_unbroken_one(
    make_trainer: Callable[..., Trainer], stop: int, accumulate: int
) -> None:
    whole = make_trainer("whole", accumulate=accumulate, epochs=4)
    whole.fit()
    broken = make_trainer("broken", accumulate=accumulate, epochs=4, max_steps=stop)
    broken.fit()
    assert broken.step == stop
    torch.rand(7)
    resumed = make_trainer("broken", accumulate=accumulate, epochs=4)
    resumed.resume(broken.folder / "last.pt")
    resumed.fit()
    assert_same_state(whole, resumed)
    assert [row["train"] for row in rows_of(whole)] == [row["train"] for row in rows_of(resumed)]
    assert [row["val"] for row in rows_of(whole)] == [row["val"] for row in rows_of(resumed)]


def test_loader_workers_do_not_change_the_result(make_trainer: Callable[..., Trainer]) -> None:
    alone = make_trainer("alone", epochs=2)
    alone.fit()
    helped = make_trainer("helped", epochs=2, num_workers=2)
    helped.fit()
    assert_same_state(alone, helped)


def test_checkpoint_loads_with_the_defaults_of_torch_and_is_complete(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer()
    trainer.fit()
    content = torch.load(trainer.folder / "last.pt")
    assert content["config"] == {"model": {"name": "stub"}, "train": asdict(trainer.config)}
    assert set(content["rng"][0]) == {"python", "numpy", "torch", "cuda"}
    assert all(type(value) is float for value in content["metrics"].values())
    assert content["step"] == 9
    assert (trainer.folder / "best.pt").exists()
    assert list((trainer.folder / "tensorboard").iterdir())


def test_resuming_is_refused_where_it_cannot_be_exact(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.fit()
    with pytest.raises(ValueError, match=r"batch_size.*3, 2"):
        make_trainer(batch_size=3).resume(trainer.folder / "last.pt")
    with pytest.raises(ValueError, match=r"'train\.clip_norm': \(1\.0, 10\.0\)"):
        make_trainer(clip_norm=1.0).resume(trainer.folder / "last.pt")
    with pytest.raises(ValueError, match=r"'train\.pruning\.ratio': \('random', 'fixed'\)"):
        make_trainer(pruning=PruningSchedule(1.0, "random")).resume(trainer.folder / "last.pt")
    make_trainer("elsewhere", max_steps=9, eval_every=3).resume(trainer.folder / "last.pt")
    torch.save({"model": {}, "config": {}}, trainer.folder / "weights.pt")
    with pytest.raises(ValueError, match="weights="):
        trainer.resume(trainer.folder / "weights.pt")


def test_pruning_sets_in_after_the_dense_epochs(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(epochs=4, execution="sparse", eval_every=2)
    trainer.fit()
    calls = [call for call in trainer.model.calls if call[3]]
    assert [call[0] for call in calls] == ["dense"] * 4 + ["sparse"] * 8
    assert [call[2] for call in calls] == pytest.approx(
        [0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]
    )
    assert {call[1] for call in calls} == {None}
    evaluated = [bool(row["val"]) for row in rows_of(trainer)]
    assert evaluated == [False, True, False, True]
    assert rows_of(trainer)[0]["train"]["kept_s3"] == 1.0
    assert rows_of(trainer)[3]["train"]["kept_s3"] == 0.5


def test_random_ratio_changes_with_every_step_and_stays_in_its_range(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(pruning=PruningSchedule(0.0, "random", (0.2, 0.4)))
    trainer.fit()
    ratios = [call[1] for call in trainer.model.calls if call[3]]
    assert len(set(ratios)) == 9
    assert all(0.2 <= ratio <= 0.4 for ratio in ratios)
    assert all(call[2] == 1.0 for call in trainer.model.calls)


@pytest.mark.parametrize(("power", "middle"), [(0.0, 0.3), (0.5, 0.4), (1.0, 0.5)])
def test_random_ratios_are_even_in_a_power(power: float, middle: float) -> None:
    schedule = PruningSchedule(0.0, "random", (0.1, 0.9), power)
    ratios = [schedule.keep_ratio(0, step) for step in range(400)]
    assert all(0.1 <= ratio <= 0.9 for ratio in ratios)
    assert sum(ratio < middle for ratio in ratios) == pytest.approx(200, abs=30)


def test_frozen_statistics_stay_as_they_are(make_trainer: Callable[..., Trainer]) -> None:
    dense = make_trainer("dense", freeze_statistics=True, max_steps=3)
    dense.fit()
    before = {name: value.clone() for name, value in dense.model.backbone[1].state_dict().items()}
    assert int(before["num_batches_tracked"]) == 3  # of the epoch without pruning
    trainer = make_trainer("dense", freeze_statistics=True)
    trainer.resume(dense.folder / "last.pt")
    trainer.fit()
    after = trainer.model.backbone[1].state_dict()
    assert int(after["num_batches_tracked"]) == 4  # and of the step at which it is still at 0
    assert not torch.equal(after["weight"], before["weight"])


def test_patience_ends_a_run_that_no_longer_gets_better(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.9, 0.1, 0.2, 0.15, 0.3, 0.2, 0.25, 0.1]  # the first one before pruning sets in
    left = iter(scores)

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        return {"AP": next(left), "AP50": 0.5}

    monkeypatch.setattr("sparse_dset.engine.train.evaluate", evaluate)
    settings = {"epochs": 20, "patience": 2, "pruning": PruningSchedule(1.0)}
    trainer = make_trainer(**settings, max_steps=12)
    trainer.fit()
    assert trainer.closed_epochs == 4
    resumed = make_trainer(**settings)
    resumed.resume(trainer.folder / "last.pt")
    resumed.fit()
    assert [row["val"]["AP"] for row in rows_of(resumed)] == scores[:7]
    assert resumed.best.result == (1.0, 0.3)


def test_without_pruning_every_evaluation_counts(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.1, 0.2])
    monkeypatch.setattr(
        "sparse_dset.engine.train.evaluate", lambda *_, **__: {"AP": next(scores), "AP50": 0.5}
    )
    trainer = make_trainer(epochs=20, patience=2, pruning=PruningSchedule(1.0))
    trainer.prunes = False
    trainer.fit()
    assert trainer.closed_epochs == 3
    assert trainer.best.result == (1.0, 0.9)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0), (10, 0), (12.5, 0.25), (20, 1), (99, 1)])
def test_progress_values(epoch: float, expected: float) -> None:
    assert PruningSchedule(10).progress(epoch) == pytest.approx(expected)
    assert PruningSchedule(0).progress(epoch) == 1.0


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_on_a_cpu(make_trainer: Callable[..., Trainer], amp: str) -> None:
    trainer = make_trainer(amp=amp, epochs=2)
    before = trainer.model.class_head.weight.clone()
    trainer.fit()
    assert trainer.model.class_head.weight.dtype == torch.float32
    assert trainer.model.class_head.weight.isfinite().all()
    assert not torch.equal(before, trainer.model.class_head.weight)


def test_overflow_of_the_loss_scale_is_skipped_and_reported(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(amp="fp16", max_steps=1)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    trainer.model.class_head.weight.register_hook(lambda grad: grad * 1e10)
    before = trainer.model.class_head.weight.clone()
    trainer.fit()
    assert trainer.skipped_steps == 1
    assert torch.equal(before, trainer.model.class_head.weight)
    assert trainer.scaler.get_scale() == pytest.approx(5e37)


def test_a_loss_that_is_not_finite_names_the_term_and_the_images(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(save_every_steps=1)

    def poisoned(*arguments: Any) -> dict[str, torch.Tensor]:
        losses = stub_criterion(*arguments)
        if trainer.step == 2:
            losses["loss_bbox"] = losses["loss_bbox"] * float("nan")
        return losses

    trainer.criterion = poisoned
    ids = [trainer.train_set.records[i].image_id for _, i in trainer._batches(0)[2]]
    with pytest.raises(RuntimeError, match="loss_bbox is nan") as error:
        trainer.fit()
    assert str(ids) in str(error.value)
    kept = load_checkpoint(trainer.folder / "last.pt")
    assert kept["step"] == 2
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_gradients_that_are_too_large_together_are_told(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer()
    trainer.model.box_head.bias.register_hook(lambda grad: torch.full_like(grad, 3e38))
    with pytest.raises(RuntimeError, match="all parameters together"):
        trainer.fit()


def test_a_gradient_that_is_not_finite_names_the_parameter(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer()
    trainer.model.box_head.bias.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(RuntimeError, match=r"box_head\.bias.*images \[1"):
        trainer.fit()
    assert trainer.model.box_head.weight.isfinite().all()


def test_a_criterion_without_losses_is_an_error(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    trainer.criterion = lambda *_: {}
    with pytest.raises(ValueError, match="no losses"):
        trainer.fit()


def test_images_without_boxes_train(
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    open_coco: Callable[..., CocoDetection],
) -> None:
    with pytest.warns(UserWarning, match="no boxes"):
        data = open_coco(tmp_path / "empty", 3, empty=range(3))
    trainer = make_trainer(data=data, epochs=1)
    trainer.fit()
    assert trainer.step == 1
    assert rows_of(trainer)[0]["val"]["AP"] is None
    assert not (trainer.folder / "best.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_the_checkpoint_and_ends(
    make_trainer: Callable[..., Trainer], number: signal.Signals
) -> None:
    trainer = make_trainer("stopped", save_every_steps=0)
    before = signal.getsignal(number)
    trainer.train_set.transforms = _Interrupt(trainer, number, at_step=4)
    with pytest.raises(SystemExit) as error:
        trainer.fit()
    assert error.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert load_checkpoint(trainer.folder / "last.pt")["step"] == 5
    assert len(rows_of(trainer)) == 1


class _Interrupt:
    """Sends a signal to its own process while a sample of some step is loaded."""

    def __init__(self, trainer: Trainer, number: signal.Signals, at_step: int) -> None:
        self.trainer = trainer
        self.number = number
        self.at_step = at_step
        self.is_sent = False

    def __call__(self, image: torch.Tensor, target: dict) -> tuple[torch.Tensor, dict]:
        if self.trainer.step == self.at_step and not self.is_sent:
            self.is_sent = True
            os.kill(os.getpid(), self.number)
        return image, target


def test_a_limit_of_steps_holds_when_it_is_resumed(make_trainer: Callable[..., Trainer]) -> None:
    make_trainer(max_steps=2).fit()
    trainer = make_trainer(max_steps=2)
    trainer.resume(trainer.folder / "last.pt")
    trainer.fit()
    assert trainer.step == 2


def test_time_limit_stops_with_a_checkpoint(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(max_minutes=1e-9)
    trainer.fit()
    assert load_checkpoint(trainer.folder / "last.pt")["step"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"epochs": "abc"},
        {"amp": "half"},
        {"accumulate": 1.5},
        {"seed": -1},
        {"patience": 0},
        {"patience": 1, "eval_every": 0},
        {"clip_norm": 0},
        {"ema_decay": 1},
        {"max_steps": 0},
        {"max_minutes": -1},
    ],
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TrainConfig("x", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_epochs": -1},
        {"ratio": "any"},
        {"ratio_range": (0.0, 0.5)},
        {"ratio_range": (0.5, 0.2)},
        {"ratio_range": [0.1]},
        {"ratio_power": -1},
    ],
)
def test_bad_pruning_schedules_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        PruningSchedule(**settings)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_images", [1, 5, 12, 23])
def test_batches_are_equal_over_processes_and_see_an_image_once(
    num_images: int, world_size: int
) -> None:
    batches = [
        epoch_batches(num_images, 2, seed=1, epoch=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    sizes = [[len(batch) for batch in own] for own in batches]
    assert all(size == sizes[0] for size in sizes)
    seen = [index for own in batches for batch in own for _, index in batch]
    if num_images >= 2 * world_size:
        assert len(set(seen)) == len(seen) == num_images // (2 * world_size) * 2 * world_size
    else:
        assert set(seen) == set(range(num_images))


def test_order_and_augmentation_depend_on_seed_epoch_and_index(data: CocoDetection) -> None:
    assert epoch_batches(9, 3, seed=0, epoch=1) != epoch_batches(9, 3, seed=0, epoch=2)
    assert epoch_batches(9, 3, seed=0, epoch=1) != epoch_batches(9, 3, seed=1, epoch=1)
    seeded = SeededDataset(data, seed=3)
    state = torch.get_rng_state()
    first = seeded[0, 1][0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(seeded[0, 1][0], first)
    brightness = {float(seeded[epoch, 1][0].sum()) for epoch in range(5)}
    assert len(brightness) > 1


@pytest.mark.parametrize("synced", [False, True])
def test_two_processes_train_together(
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    synced: bool,
    in_two_processes: Callable,
) -> None:
    def work(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trainer = make_trainer("both", batch_size=1, epochs=2, accumulate=2, sync_statistics=synced)
        trainer.fit()
        return trainer.model.state_dict(), trainer.ema.model.state_dict()

    (first, evaluated), (second, evaluated_there) = in_two_processes(work)
    assert torch.equal(first["class_head.weight"], second["class_head.weight"])
    name = "backbone.1.running_mean"
    assert torch.allclose(first[name], second[name], atol=1e-6) == synced
    # What was evaluated, a share of the images in each process, is what was written.
    torch.testing.assert_close(evaluated_there, evaluated, rtol=0, atol=0)
    rows = (tmp_path / "both" / "results.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert json.loads(rows[1])["val"]["num_images"] == 6
    content = load_checkpoint(tmp_path / "both" / "last.pt")
    torch.testing.assert_close(content["ema"]["model"], evaluated, rtol=0, atol=0)
    assert content["step"] == 4
    assert len(content["rng"]) == 2


def test_it_tells_where_the_learning_rate_stays_below_its_peak(
    make_trainer: Callable[..., Trainer],
) -> None:
    with pytest.warns(UserWarning, match="3 steps end within optim.warmup_steps=3"):
        make_trainer(epochs=1)


class _Broken:
    """A data set of which a picture cannot be read."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> None:
        raise RuntimeError("picture 7 cannot be read")


def test_an_error_ends_the_loader_workers(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(data=_Broken(), num_workers=1)
    with pytest.raises(RuntimeError, match="picture 7 cannot be read"):
        trainer.fit()
    assert not multiprocessing.active_children()


def test_deterministic_algorithms_are_switched_off_again() -> None:
    try:
        prepare(TrainConfig("x", deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        prepare(TrainConfig("x"))
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)

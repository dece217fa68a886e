from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_dset.engine.checkpoint import load_checkpoint
from sparse_dset.engine.hooks import Averaging, EpochResult, ForwardOptions, Hook, StepResult, Stop
from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.train_config import PruningSchedule
from tests.engine.runs import assert_same_state, rows_of
from tests.engine.stubs import open_coco
from tests.processes import in_two_processes


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


def test_images_without_boxes_train(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no boxes"):
        data = open_coco(tmp_path / "empty", 3, empty=range(3))
    trainer = make_trainer(data=data, epochs=1)
    trainer.fit()
    assert trainer.step == 1
    assert rows_of(trainer)[0]["val"]["AP"] is None
    assert not (trainer.folder / "best.pt").exists()


@pytest.mark.parametrize("synced", [False, True])
def test_two_processes_train_together(
    make_trainer: Callable[..., Trainer], tmp_path: Path, synced: bool
) -> None:
    def work(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trainer = make_trainer("both", batch_size=1, epochs=2, accumulate=2, sync_statistics=synced)
        trainer.fit()
        return trainer.model.state_dict(), trainer.hook(Averaging).ema.model.state_dict()

    (first, evaluated), (second, evaluated_there) = in_two_processes(work, tmp_path)
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


class _Diary(Hook):
    """Notes what it is told, lowers the keep ratio, and wants an end after the fourth step."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    @contextmanager
    def during_training(self, trainer: Trainer) -> Iterator[None]:
        self.notes.append("begin")
        yield
        self.notes.append("end")

    def before_step(self, trainer: Trainer, options: ForwardOptions) -> ForwardOptions:
        return replace(options, keep_ratio=0.25)

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        assert result.values["loss"] > 0
        self.notes.append(trainer.step)

    def after_steps(self, trainer: Trainer) -> None:
        self.notes.append("written")

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> EpochResult:
        assert result.train["loss"] > 0
        assert "AP" in result.metrics
        self.notes.append(f"epoch {result.epoch}")
        return replace(result, is_best=True)

    def wants_stop(self, trainer: Trainer) -> Stop:
        return Stop.SOON if trainer.step == 4 else Stop.NO

    def state_dict(self) -> dict[str, Any]:
        return {"diary": self.notes}

    def load_state_dict(self, state: Mapping[str, Any], source: Path) -> None:
        self.notes = [*state["diary"], "resumed"]


def test_a_hook_from_outside_is_told_and_asked(make_trainer: Callable[..., Trainer]) -> None:
    diary = _Diary()
    trainer = make_trainer(own_hooks=[diary])
    trainer.fit()
    assert diary.notes == ["begin", 1, 2, 3, "written", "epoch 1", 4, "written", "end"]
    assert {call[1] for call in trainer.model.calls if call[3]} == {0.25}
    assert load_checkpoint(trainer.folder / "best.pt")["step"] == 3
    later = _Diary()
    resumed = make_trainer(own_hooks=[later])
    resumed.resume(trainer.folder / "last.pt")
    assert later.notes == [*diary.notes[:-1], "resumed"]


@pytest.mark.parametrize(("stop", "closed"), [(Stop.SOON, 1), (Stop.NOW, 0)])
def test_an_epoch_is_closed_unless_the_training_is_to_end_at_once(
    make_trainer: Callable[..., Trainer], stop: Stop, closed: int
) -> None:
    class End(Hook):
        def wants_stop(self, trainer: Trainer) -> Stop:
            return stop if trainer.step == 3 else Stop.NO

    trainer = make_trainer(own_hooks=[End()])
    trainer.fit()
    assert (trainer.step, trainer.closed_epochs) == (3, closed)
    resumed = make_trainer()
    resumed.resume(trainer.folder / "last.pt")
    resumed.fit()
    assert [row["epoch"] for row in rows_of(resumed)] == [1, 2, 3]

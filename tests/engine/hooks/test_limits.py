from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch

from sparse_dset.engine.checkpoint import load_checkpoint
from sparse_dset.engine.loop import Trainer
from tests.engine.runs import rows_of


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

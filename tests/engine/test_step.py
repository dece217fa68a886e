from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparse_dset.engine.checkpoint import load_checkpoint
from sparse_dset.engine.loop import Trainer
from tests.engine.stubs import stub_criterion


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
    trainer.optimizer_step.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    trainer.model.class_head.weight.register_hook(lambda grad: grad * 1e10)
    before = trainer.model.class_head.weight.clone()
    trainer.fit()
    assert trainer.skipped_steps == 1
    assert torch.equal(before, trainer.model.class_head.weight)
    assert trainer.optimizer_step.scaler.get_scale() == pytest.approx(5e37)


def test_a_loss_that_is_not_finite_names_the_term_and_the_images(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(save_every_steps=1)

    def poisoned(*arguments: Any) -> dict[str, torch.Tensor]:
        losses = stub_criterion(*arguments)
        if trainer.step == 2:
            losses["loss_bbox"] = losses["loss_bbox"] * float("nan")
        return losses

    trainer.optimizer_step.criterion = poisoned
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
    trainer.optimizer_step.criterion = lambda *_: {}
    with pytest.raises(ValueError, match="no losses"):
        trainer.fit()

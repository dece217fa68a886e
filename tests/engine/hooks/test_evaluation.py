from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sparse_dset.engine.hooks import Evaluation
from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.train_config import PruningSchedule
from tests.engine.runs import rows_of


def test_patience_ends_a_run_that_no_longer_gets_better(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.9, 0.1, 0.2, 0.15, 0.3, 0.2, 0.25, 0.1]  # the first one before pruning sets in
    left = iter(scores)

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        return {"AP": next(left), "AP50": 0.5}

    monkeypatch.setattr("sparse_dset.engine.hooks.evaluation.evaluate", evaluate)
    settings = {"epochs": 20, "patience": 2, "pruning": PruningSchedule(1.0)}
    trainer = make_trainer(**settings, max_steps=12)
    trainer.fit()
    assert trainer.closed_epochs == 4
    resumed = make_trainer(**settings)
    resumed.resume(trainer.folder / "last.pt")
    resumed.fit()
    assert [row["val"]["AP"] for row in rows_of(resumed)] == scores[:7]
    assert resumed.hook(Evaluation).best.result == (1.0, 0.3)


def test_without_pruning_every_evaluation_counts(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.1, 0.2])

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        return {"AP": next(scores), "AP50": 0.5}

    monkeypatch.setattr("sparse_dset.engine.hooks.evaluation.evaluate", evaluate)
    trainer = make_trainer(epochs=20, patience=2, pruning=PruningSchedule(1.0))
    trainer.hook(Evaluation).prunes = False
    trainer.fit()
    assert trainer.closed_epochs == 3
    assert trainer.hook(Evaluation).best.result == (1.0, 0.9)

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.train_config import PruningSchedule
from tests.engine.runs import rows_of


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

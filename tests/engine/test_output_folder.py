"""What a training leaves in its output folder, and what the next one finds there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_dset.engine.checkpoint import load_checkpoint
from sparse_dset.engine.hooks import Evaluation
from sparse_dset.engine.loggers import shown
from sparse_dset.engine.loop import Trainer
from sparse_dset.engine.optim import OptimConfig
from sparse_dset.engine.train import make_trainer as make_any_trainer
from sparse_dset.engine.train import prepare
from sparse_dset.engine.train_config import PruningSchedule, TrainConfig
from tests.engine.stubs import StubDetector, open_coco, stub_criterion


@pytest.fixture
def make_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """Makes trainers of which one epoch is one step, and whose evaluations give wanted scores."""
    data = open_coco(tmp_path / "data", 2)

    def make(folder: str, scores: list[float] | None = None, **settings: Any) -> Trainer:
        left = iter(scores or ())
        monkeypatch.setattr(
            "sparse_dset.engine.hooks.evaluation.evaluate",
            lambda *_, **__: {"AP": next(left), "AP50": math.nan},
        )
        config = TrainConfig(
            str(tmp_path / folder),
            **{
                "epochs": 4,
                "batch_size": 2,
                "num_workers": 0,
                "pruning": PruningSchedule(0.0),
                "device": "cpu",
                "progress_bar": False,
                **settings,
            },
        )
        prepare(config)
        return make_any_trainer(
            StubDetector(),
            stub_criterion,
            data,
            data if scores is not None else None,
            config=config,
            optim=OptimConfig(lr=1e-2, warmup_steps=1),
            record={"model": {}, "train": asdict(config)},
            device=torch.device("cpu"),
        )

    return make


def test_the_best_checkpoint_comes_along_into_another_folder(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    make_trainer("first", [0.1, 0.5, 0.2], max_steps=3).fit()
    second = make_trainer("second", [0.3])
    second.resume(tmp_path / "first" / "last.pt")
    second.fit()
    first, own = (load_checkpoint(tmp_path / f / "best.pt") for f in ("first", "second"))
    assert own["step"] == first["step"] == 2
    assert own["best"] == [1.0, 0.5]


@pytest.mark.parametrize("lost", ["absent", "of another evaluation"])
@pytest.mark.parametrize("folder", ["first", "second"])
def test_a_best_score_without_its_file_is_given_up(
    make_trainer: Callable[..., Trainer], tmp_path: Path, lost: str, folder: str
) -> None:
    make_trainer("first", [0.1, 0.5], max_steps=2).fit()
    best, last = tmp_path / "first" / "best.pt", tmp_path / "first" / "last.pt"
    best.unlink()
    if lost == "of another evaluation":
        make_trainer("other", [0.9], max_steps=1).fit()
        if folder == "second":
            shutil.copy(tmp_path / "other" / "best.pt", best)
    second = make_trainer(folder, [0.3, 0.2])
    second.resume(last)
    second.fit()
    assert load_checkpoint(tmp_path / folder / "best.pt")["metrics"]["AP"] == 0.3


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([math.nan, 0.0, math.nan, math.nan], 0.0),
        ([math.nan, math.nan, 0.2, 0.1], 0.2),
        ([math.nan] * 4, None),
    ],
)
def test_an_evaluation_that_is_not_available_is_never_the_best(
    make_trainer: Callable[..., Trainer],
    capsys: pytest.CaptureFixture,
    scores: list[float],
    best: float | None,
) -> None:
    trainer = make_trainer("run", scores, patience=2)
    trainer.fit()
    assert trainer.closed_epochs == 4
    file = trainer.folder / "best.pt"
    assert (load_checkpoint(file)["metrics"]["AP"] if file.exists() else None) == best
    told = capsys.readouterr().out
    assert "AP n/a AP50 n/a" in told
    assert "nan" not in told
    assert "NaN" not in (trainer.folder / "results.jsonl").read_text()


def test_a_training_without_validation_ends_with_its_last_checkpoint(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    make_trainer("run", max_steps=2).fit()
    resumed = make_trainer("run")
    resumed.resume(tmp_path / "run" / "last.pt")
    resumed.fit()
    assert resumed.hook(Evaluation).metrics == {}
    assert load_checkpoint(tmp_path / "run" / "last.pt")["closed_epochs"] == 4
    assert not (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize("epochs", [1, 3, 8])
def test_other_epochs_are_no_continuation(
    make_trainer: Callable[..., Trainer], tmp_path: Path, epochs: int
) -> None:
    make_trainer("run", [0.1, 0.2, 0.3, 0.4]).fit()
    last = tmp_path / "run" / "last.pt"
    before = last.read_bytes()
    with pytest.raises(ValueError, match=r"train\.epochs.*\(\d, 4\)") as error:
        make_trainer("run", [], epochs=epochs).resume(last)
    assert f"start a new run from the weights with weights={last}" in str(error.value)
    assert last.read_bytes() == before


@pytest.mark.parametrize(
    ("value", "text"), [(None, "n/a"), (math.nan, "n/a"), (math.inf, "n/a"), (0.25, "0.2500")]
)
def test_a_number_for_people(value: float | None, text: str) -> None:
    assert shown(value, ".4f") == text

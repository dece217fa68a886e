"""Checks the settings of a training against each other, before anything is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sparse_dset.config import build_from_config
from sparse_dset.engine.checkpoint import LoadReport
from sparse_dset.engine.optim import OptimConfig
from sparse_dset.engine.train_config import PruningSchedule, TrainConfig
from sparse_dset.instantiate import instantiate
from sparse_dset.models.detector import Detector
from sparse_dset.models.executions import find_execution
from sparse_dset.models.pruner import BY_CONTENT


def check_plan(plain: Mapping[str, Any]) -> None:
    """Checks the configuration of a training.

    Args:
        plain: conf/train.yaml as it was composed.

    Raises:
        ValueError: a value is out of its range, or settings contradict each other.
    """
    train, optim = (instantiate(plain[name]) for name in ("train", "optim"))
    pruner, pruning = plain["pruner"], train.pruning
    if plain["peer"] not in (None, "hugging_face"):
        raise ValueError(f"peer must be hugging_face or null, got {plain['peer']!r}")
    if plain["peer"] and train.execution and find_execution(train.execution).prunes:
        raise ValueError(
            f"peer={plain['peer']} runs dense only: set train.execution=dense, not "
            f"{train.execution}"
        )
    if train.patience is not None and plain["data"].get("val") is None:
        raise ValueError(
            f"train.patience={train.patience} counts evaluations, and data.val=null leaves nothing "
            "to evaluate on: give data.val, or set train.patience to null"
        )
    if plain["weights"] is not None and not Path(plain["weights"]).is_file():
        raise ValueError(f"weights={plain['weights']}: there is no such file")
    if pruner["score_by"] != "learned":
        raise ValueError(
            f"pruner.score_by={pruner['score_by']} has nothing to train: train with "
            "learned, and change it with scripts/calibrate.py"
        )
    by_content = pruner["selector"] in BY_CONTENT and not pruner["calibration"]
    if pruning.ratio == "random" and by_content:
        raise ValueError(
            f"pruner.selector={pruner['selector']} keeps what its own setting says, so that "
            "train.pruning.ratio=random has nothing to draw: train with pruner.selector=batch, "
            "whose counts follow the content too, and choose another with scripts/calibrate.py"
        )
    instantiate(plain["losses"])
    described = {"model": {**plain["model"], "class_names": None}}  # the data decides the classes
    model = None if plain["peer"] else build_from_config(described, pretrained=False)
    if model is not None:
        model.check_decision()
    from_scratch = plain["weights"] is None and not plain["resume"]
    if train.freeze_statistics and not pruning.warmup_epochs and from_scratch:
        raise ValueError(
            "train.freeze_statistics=true freezes what BatchNorm has seen, and new layers have "
            "seen nothing: give train.pruning.warmup_epochs > 0, weights to start from, or "
            "train.freeze_statistics=false"
        )
    if model is not None and from_scratch:
        _warn_of_random_backbone(plain["model"]["backbone"])
    if model is not None and ever_prunes(model, train):
        if from_scratch:
            _check_scorer_learns(plain, optim)
        _warn_of_late_pruning(train, pruning)


def check_statistics(report: LoadReport, train: TrainConfig) -> None:
    """Checks that no statistics are frozen that the weights did not bring.

    Args:
        report: of the weights that training starts from.
        train: the loop's settings.

    Raises:
        ValueError: a normalisation of a new layer would be frozen as it was made.
    """
    unseen = [
        name
        for name in (*report.missing, *report.mismatched)
        if name.endswith("running_var") and not name.startswith("backbone.")
    ]
    if unseen and train.freeze_statistics and not train.pruning.warmup_epochs:
        raise ValueError(
            f"train.freeze_statistics=true freezes what BatchNorm has seen, and {len(unseen)} of "
            f"its layers, which the weights do not fill, have seen nothing ({unseen[0]} first): "
            "give train.pruning.warmup_epochs > 0, or train.freeze_statistics=false"
        )


def ever_prunes(model: nn.Module, train: TrainConfig) -> bool:
    """Whether a training prunes at any time: not where it runs dense or keeps every token."""
    if (
        not isinstance(model, Detector)
        or not find_execution(train.execution or model.execution).prunes
    ):
        return False
    return train.pruning.ratio == "random" or not model.pruner.selector.keeps_all


def _check_scorer_learns(plain: Mapping[str, Any], optim: OptimConfig) -> None:
    cass = plain["losses"]["cass"]
    supervised = cass is not None and cass["weight"] > 0
    if not optim.pruner_factor or not (supervised or plain["pruner"]["gate"]):
        raise ValueError(
            "nothing trains the scores by which tokens are kept: give losses.cass with a weight "
            "above 0 or pruner.gate=true, and optim.pruner_factor above 0"
        )


def _warn_of_random_backbone(backbone: Mapping[str, Any]) -> None:
    if backbone.get("weights") is not None:
        return
    fixed = [f"model.backbone.{key}" for key in ("frozen", "frozen_norm") if backbone.get(key)]
    warnings.warn(
        "the backbone starts from random weights"
        + (f", part of which never learns ({', '.join(fixed)})" if fixed else "")
        + "; a detector needs weights=<a checkpoint, a released RT-DETRv2 too>, or far longer "
        "training with optim.backbone_factor=1",
        stacklevel=3,
    )


def _warn_of_late_pruning(train: TrainConfig, pruning: PruningSchedule) -> None:
    reached = pruning.progress(train.epochs)
    if reached < 1:
        warnings.warn(
            f"train.epochs={train.epochs} end before pruning has set in fully: without it for "
            f"train.pruning.warmup_epochs={pruning.warmup_epochs:g}, and "
            f"{'not at all' if not reached else f'{100 * reached:.0f} % of the way'} to the keep "
            "ratio at the end; fewer warm-up epochs, or train.execution=dense, say what is meant",
            stacklevel=3,
        )

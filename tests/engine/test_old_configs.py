from __future__ import annotations

import pytest

from sparse_dset.config import build_from_config, compose_config
from sparse_dset.engine.old_configs import in_present_form

_LOSSES = {"_target_": "sparse_dset.losses.losses.make_losses", "_partial_": True, "width": 128}


def _of_before(**weights: float) -> dict:
    """A configuration in which the detector makes its losses itself."""
    config = compose_config("detector", ["model=nano", "model.num_classes=3"])
    losses = {**config["losses"], **_LOSSES, **weights}
    model = {k: v for k, v in config["model"].items() if k != "dense_head"}
    return {**config, "losses": losses, "model": {**model, "losses": losses}}


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_criterion_was_the_detectors(weight: float) -> None:
    given = [f"losses.dense_cls={weight}", "losses.dense_box=0"]
    expected = compose_config("detector", ["model=nano", "model.num_classes=3", *given])
    present = in_present_form(_of_before(dense_cls=weight, dense_box=0.0))
    assert present == expected
    names = build_from_config(present, pretrained=False).state_dict()
    assert any(name.startswith("losses.dense.class_head") for name in names) == bool(weight)


@pytest.mark.parametrize("config", [{}, {"model": None}, {"model": {"losses": 3}, "losses": "x"}])
def test_what_is_no_configuration_stays(config: dict) -> None:
    assert in_present_form(config) == config


def test_one_of_today_stays() -> None:
    config = compose_config("train", ["data=coco", "data.root=/x"])
    assert in_present_form(config) == config


def test_settings_of_a_training_were_elsewhere() -> None:
    present = compose_config("train", ["data=coco", "data.root=/x"])
    before = {**present, "train": {**present["train"]}}
    before["train"]["_target_"] = "sparse_dset.engine.train.TrainConfig"
    pruning = {"_target_": "sparse_dset.engine.train.PruningSchedule"}
    before["train"]["pruning"] = {**present["train"]["pruning"], **pruning}
    assert before != present
    assert in_present_form(before) == present

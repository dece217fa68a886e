from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_dset.engine.optim import (
    OptimConfig,
    build_optimizer,
    build_scheduler,
    lr_factor,
    parameter_groups,
)
from sparse_dset.models.moe import Experts
from tests.engine.stubs import StubDetector


def test_groups_hold_every_parameter_once_with_its_settings() -> None:
    model = StubDetector()
    config = OptimConfig(lr=1e-3, backbone_factor=0.1, weight_decay=0.05)
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    assert set(groups) == {"backbone_decay", "backbone_no_decay", "new_decay", "new_no_decay"}
    assert groups["backbone_decay"]["params"] == [model.backbone[0].weight]
    assert groups["backbone_decay"]["lr"] == pytest.approx(1e-4)
    assert groups["new_decay"]["lr"] == 1e-3
    assert groups["new_decay"]["weight_decay"] == 0.05
    assert groups["new_no_decay"]["weight_decay"] == 0.0
    assert any(p is model.backbone[1].weight for p in groups["backbone_no_decay"]["params"])
    total = sum(len(group["params"]) for group in groups.values())
    assert total == len(list(model.parameters()))


def test_the_pruner_has_a_learning_rate_of_its_own() -> None:
    model = nn.ModuleDict({"pruner": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    groups = {g["name"]: g for g in parameter_groups(model, OptimConfig(lr=0.1, pruner_factor=3.0))}
    assert groups["pruner_decay"]["params"] == [model["pruner"].weight]
    assert groups["pruner_no_decay"]["lr"] == pytest.approx(0.3)
    assert groups["new_decay"]["lr"] == 0.1


def test_neither_the_biases_of_experts_nor_the_background_are_decayed() -> None:
    model = nn.ModuleDict({"experts": Experts(2, 4, 8), "decoder": nn.Module()})
    model["decoder"].background = nn.Parameter(torch.zeros(3, 4))
    groups = {g["name"]: g["params"] for g in parameter_groups(model, OptimConfig())}
    experts = model["experts"]
    assert [p.shape for p in groups["new_decay"]] == [experts.weight1.shape, experts.weight2.shape]
    assert any(p is model["decoder"].background for p in groups["new_no_decay"])


def test_frozen_parameters_are_left_out() -> None:
    model = StubDetector()
    model.backbone.requires_grad_(False)
    assert {g["name"] for g in parameter_groups(model, OptimConfig())} == {
        "new_decay",
        "new_no_decay",
    }
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad"):
        build_optimizer(model, OptimConfig())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.55, 100: 0.1, 200: 0.1}),
        ("flat_cosine", {0: 0.1, 10: 1.0, 50: 1.0, 75: 0.55, 100: 0.1}),
        ("multistep", {0: 0.1, 79: 1.0, 80: 0.1, 94: 0.1, 95: 0.01}),
        ("constant", {0: 0.1, 50: 1.0, 100: 1.0}),
    ],
)
def test_schedule_values(schedule: str, expected: dict[int, float]) -> None:
    config = OptimConfig(schedule=schedule, warmup_steps=10, final_factor=0.1)
    for step, factor in expected.items():
        assert lr_factor(config, step, 100) == pytest.approx(factor), step


def test_scheduler_scales_every_group() -> None:
    optimizer = build_optimizer(StubDetector(), OptimConfig(lr=1.0, backbone_factor=0.5))
    scheduler = build_scheduler(optimizer, OptimConfig(schedule="constant", warmup_steps=4), 10)
    seen = []
    for _ in range(5):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]))
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(
        torch.tensor(seen).T,
        torch.tensor([[0.25, 0.5, 0.75, 1, 1], [0.125, 0.25, 0.375, 0.5, 0.5]]),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"schedule": "linear"},
        {"warmup_steps": -1},
        {"milestones": (0.9, 0.5)},
        {"final_factor": 2.0},
        {"milestones": (2, 3)},
        {"betas": (0.9,)},
        {"lr": "fast"},
    ],
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        OptimConfig(**settings)

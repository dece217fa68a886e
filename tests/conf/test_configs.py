"""Every configuration composes and builds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sparse_dset.config import (
    build_detector,
    build_from_config,
    compose_config,
    config_dir,
)
from sparse_dset.instantiate import instantiate

LARGE = {"r50", "r101"}


def _names(group):
    return sorted(p.stem for p in (config_dir() / group).glob("[!_]*.yaml"))


def test_there_are_configurations():
    assert {"nano", "lite0", "r18", "r34", "r50", "r101", "dset_r18"} <= set(_names("model"))
    assert {"default", "dset"} <= set(_names("pruner"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in _names("model")],
)
def test_every_model_builds_and_runs(name):
    model = build_detector(name, 4, pretrained=False).eval()
    with torch.no_grad():
        out = model(torch.rand(1, 3, 64, 96), keep_ratio=0.5)
    assert out.pred_logits.shape[-1] == 4
    assert out.pred_boxes.isfinite().all()


@pytest.mark.parametrize("group", ["pruner", "losses", "ops"])
def test_every_option_of_a_group_builds(group):
    for option in _names(group):
        build_detector("nano", 4, [f"{group}={option}"], pretrained=False)


@pytest.mark.parametrize("name", sorted(p.stem for p in config_dir().glob("*.yaml")))
def test_every_top_level_configuration_composes(name):
    overrides = ["data=synthetic"] if name == "train" else []
    assert compose_config(name, overrides)


@pytest.mark.parametrize("name", _names("experiment"))
def test_every_experiment_builds(name):
    cfg = compose_config("train", [f"experiment={name}"])
    instantiate(cfg["optim"])
    instantiate(cfg["train"])
    build_from_config(cfg, pretrained=False)


@pytest.mark.parametrize("option", _names("optim"))
def test_every_optimiser_builds(option):
    cfg = compose_config("train", [f"optim={option}", "data=synthetic"])
    instantiate(cfg["optim"])
    instantiate(cfg["train"])


@pytest.mark.parametrize("option", _names("data"))
def test_every_data_set_composes(option, tmp_path):
    cfg = compose_config("train", [f"data={option}", f"data.root={tmp_path}"])
    assert str(tmp_path) in str(cfg["data"]["train"])
    assert str(tmp_path) in str(cfg["data"]["val"])


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("r18", 20),
        ("r34", 31),
        pytest.param("r50", 42, marks=pytest.mark.slow),
        pytest.param("r101", 76, marks=pytest.mark.slow),
    ],
)
def test_sizes_are_those_published(name, millions):
    """Without the parts of ours."""
    model = build_detector(name, 80, pretrained=False)
    parts = (model.backbone, model.encoder, model.decoder)
    count = sum(p.numel() for part in parts for p in part.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=1.0)


def test_dset_looks_at_the_coarsest_level_and_routes_to_three_of_six():
    model = build_detector("dset_r18", 4, ["pruner=dset"], pretrained=False)
    assert model.pruner.scorer.levels == [3]
    for layer in (*model.encoder.encoder[0].layers, *model.decoder.decoder.layers):
        assert (layer.moe.router.out_features, layer.moe.top_k) == (6, 3)


def test_the_arms_that_the_readme_names_are_there():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    commands = re.findall(r"^python scripts/ablate.py (.*)$", text, flags=re.MULTILINE)
    named = [re.search(r"only=\[(.*?)\]", command) for command in commands]
    assert len(commands) >= 3
    for command, only in zip(commands, named, strict=True):
        ablation = re.search(r"ablation=(\w+)", command)
        if only is not None:
            choice = f"ablation={ablation[1] if ablation else 'aerial'}"
            arms = compose_config("ablate", [choice])["arms"]
            assert set(only[1].split(",")) <= arms.keys()

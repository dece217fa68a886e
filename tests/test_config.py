from __future__ import annotations

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sparse_dset import build_detector
from sparse_dset.config import build_from_config, compose_config, config_dir
from sparse_dset.models.pruner import TopK


def test_overrides_arrive():
    cfg = compose_config("detector", ["model=nano", "model.num_classes=7", "pruner.keep_ratio=0.4"])
    assert cfg["model"]["num_classes"] == 7
    assert cfg["model"]["pruner"]["keep_ratio"] == cfg["pruner"]["keep_ratio"] == 0.4
    model = build_from_config(cfg, pretrained=False)
    assert model.num_classes == 7
    assert model.pruner.selector.keep_ratio == 0.4


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="no model is called 'r19'; there are .*r18, r34"):
        build_detector("r19")


def test_a_private_configuration_is_no_model():
    with pytest.raises(ValueError, match="no model is called '_base'"):
        build_detector("_base")


@pytest.mark.parametrize("override", ["pruner.keeep_ratio=0.5", "keeep=0.5", "keep_ratio=0.5"])
def test_a_typo_names_the_nearest_key(override):
    with pytest.raises(ValueError, match=r"did you mean 'pruner\.keep_ratio'"):
        build_detector("nano", 3, [override])


def test_a_typo_after_a_group_names_the_nearest_key():
    with pytest.raises(ValueError, match=r"'train\.epoch' .* did you mean 'train\.epochs'"):
        compose_config("train", ["experiment=demo", "train.epoch=3"])


def test_a_typo_in_a_group_is_refused():
    with pytest.raises(ValueError, match="prunner"):
        compose_config("detector", ["prunner=dset"])
    with pytest.raises(ValueError, match="dest"):
        compose_config("detector", ["pruner=dest"])
    with pytest.raises(ValueError, match="nanoo"):
        compose_config("detector", ["model=nanoo"])


@pytest.mark.parametrize("ratio", ["0", "0.0", "1.5", "-0.1", "abc", "true", "nan"])
def test_keep_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(ValueError, match=r"pruner.keep_ratio must be .*in \(0, 1\]"):
        compose_config("detector", [f"pruner.keep_ratio={ratio}"])


@pytest.mark.parametrize("ratio", [0.1 + 0.2, np.float32(0.3), "0.30000000000000004"])
def test_ratios_are_rounded(ratio):
    plain = compose_config("detector", [f"pruner.keep_ratio={ratio}"])
    assert plain["pruner"]["keep_ratio"] == plain["model"]["pruner"]["keep_ratio"] == 0.3
    if not isinstance(ratio, str):
        assert TopK(keep_ratio=ratio).keep_ratio == 0.3


def test_an_integer_one_is_a_ratio():
    model = build_detector("nano", 3, ["pruner.keep_ratio=1"], pretrained=False)
    ratio = model.pruner.selector.keep_ratio
    assert ratio == 1.0
    assert isinstance(ratio, float)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.execution=fast"],
        ["pruner.selector=best"],
        ["pruner.levels=[s6]"],
        ["model.num_classes=0"],
        ["model.class_names=[a,b]"],
        ["model.encoder.position=rows"],
        ["model.decoder.background=mean"],
    ],
)
def test_values_out_of_range_are_refused(overrides):
    with pytest.raises(Exception, match=r"must be|levels are called|class names"):
        build_detector("nano", 3, overrides, pretrained=False)


def test_hydras_global_state_stays():
    GlobalHydra.instance().clear()
    compose_config("detector")
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        compose_config("detector")
        assert GlobalHydra.instance().hydra is outer
        with pytest.raises(ValueError, match="abc"):
            compose_config("detector", ["pruner.keep_ratio=abc"])
        assert GlobalHydra.instance().hydra is outer
        assert compose("detector", overrides=["model=nano"]).model.encoder.width == 128
    assert not GlobalHydra.instance().is_initialized()


def test_it_works_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose_config("detector", ["model=nano"])["model"]["encoder"]["width"] == 128
    assert list(tmp_path.iterdir()) == []


def test_composed_configurations_are_plain():
    nodes = [compose_config("train", ["data=synthetic"])]
    for node in nodes:
        assert type(node) in (dict, list, str, int, float, bool, type(None))
        if isinstance(node, (dict, list)):
            nodes += node.values() if isinstance(node, dict) else node


def test_a_missing_root_is_named():
    with pytest.raises(ValueError, match=r"data\.root"):
        compose_config("train", ["data=coco"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.encoder.num_layers=1000000000000", "model.encoder.num_layers must be"),
        ("model.encoder.num_layers=1001", r"model.encoder.num_layers must be .* at most 1000"),
        ("model.encoder.blocks=1000000", "model.encoder.blocks must be .* at most 1000"),
        ("model.decoder.num_layers=1000000", "model.decoder.num_layers must be .* at most 1000"),
        ("model.decoder.num_queries=4294967296", r"model\.decoder\.num_queries must be"),
    ],
)
def test_a_network_too_large_for_any_memory_is_refused_before_it_is_made(
    override: str, message: str
) -> None:
    config = compose_config("detector", ["model=nano", override])
    with pytest.raises(ValueError, match=message):
        build_from_config(config, pretrained=False)


@pytest.mark.parametrize("target", [None, "builtins.dict"])
def test_a_model_that_is_none_is_refused(target: str | None) -> None:
    model = {"backbone": {}, "width": 3}
    if target is not None:
        model["_target_"] = target
    with pytest.raises(ValueError, match=r"model\._target_ must name a detector, got .* a dict"):
        build_from_config({"model": model})


@pytest.mark.parametrize("choice", ["optim=nan", "model=50", "data={a:1}", "data=true"])
def test_a_number_where_a_file_is_to_be_named_is_refused(choice: str) -> None:
    group = choice.partition("=")[0]
    with pytest.raises(ValueError, match=f"{group} must name a file in conf/{group}; there are "):
        compose_config("train", [choice])

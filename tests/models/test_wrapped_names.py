"""State dicts that were saved from a wrapped model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sparse_dset import build_detector, load_detector
from sparse_dset.config import compose_config
from sparse_dset.engine.checkpoint import load_weights, save_checkpoint
from sparse_dset.models.wrapped_names import without_wrappers

WRAPPED = ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."]


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    return build_detector("nano", 3, pretrained=False)


def _fresh() -> nn.Module:
    model = build_detector("nano", 3, pretrained=False)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def _assert_equal(first: nn.Module, second: nn.Module) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("where", ["model", "ema"])
def test_a_checkpoint_of_a_wrapped_model_loads(
    detector: nn.Module, tmp_path: Path, prefix: str, where: str
) -> None:
    state = {f"{prefix}{name}": value for name, value in detector.state_dict().items()}
    config = compose_config("detector", ["model=nano", "model.num_classes=3"])
    entries = {"ema": {"model": state}} if where == "ema" else {}
    save_checkpoint(tmp_path / "x.pt", model_state=state, config=config, **entries)
    _assert_equal(load_detector(tmp_path / "x.pt"), detector)


@pytest.mark.parametrize("prefix", WRAPPED)
def test_weights_and_released_files_of_a_wrapped_model_load(
    detector: nn.Module, prefix: str
) -> None:
    state = {f"{prefix}{name}": value for name, value in detector.state_dict().items()}
    model = _fresh()
    report = load_weights(model, state)
    assert not report.missing
    assert not report.unexpected
    _assert_equal(model, detector)
    model = _fresh()
    released = {k: v for k, v in state.items() if "losses." not in k and "pruner." not in k}
    model.load_rtdetr({"ema": {"module": released}})
    assert torch.equal(
        model.decoder.input_proj[0].conv.weight, detector.decoder.input_proj[0].conv.weight
    )


def test_a_part_that_was_compiled_is_found() -> None:
    names = ["backbone._orig_mod.stem.weight", "encoder.layers.0._orig_mod.bias", "head.weight"]
    plain = ["backbone.stem.weight", "encoder.layers.0.bias", "head.weight"]
    assert list(without_wrappers(dict.fromkeys(names, 0))) == plain


def test_real_names_of_the_model_stay() -> None:
    own = {"module.weight": 0}
    assert without_wrappers({"module.weight": 1}, own) == {"module.weight": 1}


def test_names_that_become_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has head\.weight twice"):
        without_wrappers({"head.weight": 0, "module.head.weight": 1})

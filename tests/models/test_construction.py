"""What it takes to make a detector: no data, and no memory on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_dset import build_detector
from sparse_dset.config import config_dir

MODELS = sorted(path.stem for path in (config_dir() / "model").glob("[!_]*.yaml"))
PRUNERS = ("default", "dset", "early")


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("name", MODELS)
def test_a_detector_is_made_without_memory(name: str, pruner: str) -> None:
    with torch.device("meta"):
        model = build_detector(name, overrides=[f"pruner={pruner}"], pretrained=False)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("name", [name for name in MODELS if name.removeprefix("dset_")[0] == "r"])
def test_a_detector_on_a_resnet_is_made_without_a_forward_pass(
    name: str, pruner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(module: nn.Module, *_: object, **__: object) -> None:
        raise AssertionError(f"{type(module).__name__} ran")

    monkeypatch.setattr(nn.Module, "__call__", called)
    with torch.device("meta"):
        build_detector(name, overrides=[f"pruner={pruner}"], pretrained=False)

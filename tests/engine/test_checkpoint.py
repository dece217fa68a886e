from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparse_dset.config import build_from_config, compose_config
from sparse_dset.data.view import View
from sparse_dset.engine.checkpoint import (
    export_weights,
    load_checkpoint,
    load_detector,
    load_weights,
    model_weights,
    replace_config,
    save_checkpoint,
)
from tests.engine.stubs import StubDetector


def test_what_is_saved_loads_with_the_defaults_of_torch(tmp_path: Path) -> None:
    model = StubDetector()
    config = {"model": {"name": "r18", "sizes": [1, 2]}, "keep_ratio": 0.3, "resume": None}
    path = tmp_path / "deep" / "x.pt"
    save_checkpoint(path, model_state=model.state_dict(), config=config, step=3)
    assert torch.load(path)["config"] == config
    content = load_checkpoint(path)
    assert content["step"] == 3
    assert torch.equal(content["model"]["class_head.weight"], model.class_head.weight)


@pytest.mark.parametrize("value", [np.float64(0.5), argparse.Namespace(a=1), Path("x"), {1, 2}])
def test_values_that_are_not_plain_are_refused_and_located(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\['metrics'\]\['AP'\]"):
        save_checkpoint(tmp_path / "x.pt", model_state={}, config={}, metrics={"AP": value})
    assert not list(tmp_path.iterdir())


def test_a_crash_while_saving_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, model_state={}, config={}, step=1)

    def crash(_content: object, file: object) -> None:
        file.write(b"half of a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, model_state={}, config={}, step=2)
    assert load_checkpoint(path)["step"] == 1
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]


def test_foreign_objects_are_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ValueError, match="trust=True") as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert load_checkpoint(path, trust=True)["args"].lr == 1


def test_missing_empty_cut_and_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(FileNotFoundError, match=r"x\.pt"):
        load_checkpoint(path)
    path.touch()
    with pytest.raises(ValueError, match=r"x\.pt is empty"):
        load_checkpoint(path)
    save_checkpoint(path, model_state=StubDetector().state_dict(), config={})
    content = path.read_bytes()
    for length in (10, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"x\.pt"):
            load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="list"):
        load_checkpoint(path)
    for content in (b"hello", bytes(1000)):
        path.write_bytes(content)
        for trust in (False, True):
            with pytest.raises(ValueError, match=r"x\.pt"):
                load_checkpoint(path, trust=trust)


def test_another_class_count_loads_everything_but_the_head() -> None:
    source, model = StubDetector(num_classes=80), StubDetector(num_classes=3)
    head = model.class_head.weight.clone()
    report = load_weights(model, source.state_dict())
    assert set(report.mismatched) == {"class_head.weight", "class_head.bias"}
    assert report.mismatched["class_head.bias"] == ((240,), (9,))
    assert torch.equal(model.class_head.weight, head)
    assert torch.equal(model.backbone[0].weight, source.backbone[0].weight)
    assert "class_head.weight [240, 4] in the file, [9, 4] in the model" in str(report)


def test_missing_and_unexpected_names_are_listed() -> None:
    model = StubDetector()
    state = StubDetector().state_dict()
    state["renamed"] = state.pop("box_head.bias")
    report = load_weights(model, state)
    assert report.missing == ("box_head.bias",)
    assert report.unexpected == ("renamed",)
    assert len(report.loaded) == len(state) - 1


def test_no_match_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of the weights match"):
        load_weights(nn.Linear(2, 2), StubDetector().state_dict())


def test_averaged_weights_are_preferred() -> None:
    assert model_weights({"model": {"a": 1}, "ema": {"model": {"a": 2}}}) == {"a": 2}
    assert model_weights({"model": {"a": 1}}) == {"a": 1}
    with pytest.raises(ValueError, match="another project"):
        model_weights({"state_dict": {}})


def test_exported_weights_are_half_the_size_and_come_back_as_float32(tmp_path: Path) -> None:
    weight = torch.randn(256, 256)
    huge = torch.full((2, 2), 1e6)
    state = {"weight": weight, "bias": torch.tensor([1e-9]), "huge": huge, "count": torch.tensor(3)}
    save_checkpoint(
        tmp_path / "train.pt",
        model_state={"weight": -weight},
        config={"a": 1},
        ema={"model": state, "updates": 5},
        optimizer={"state": {}},
    )
    export_weights(tmp_path / "train.pt", tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").stat().st_size < 0.55 * weight.numel() * 4
    content = load_checkpoint(tmp_path / "weights.pt")
    assert content["config"] == {"a": 1}
    assert "optimizer" not in content
    assert "ema" not in content
    assert content["model"]["weight"].dtype == torch.float32
    torch.testing.assert_close(content["model"]["weight"], weight, rtol=1e-3, atol=1e-6)
    for name in ("bias", "huge", "count"):
        assert torch.equal(content["model"][name], state[name])


@pytest.mark.parametrize("half", [False, True])
def test_another_configuration_changes_nothing_else(tmp_path: Path, half: bool) -> None:
    path, other = tmp_path / "x.pt", tmp_path / "y.pt"
    state = {"weight": torch.randn(4, 3), "bias": torch.randn(4)}
    entries = {"ema": {"model": state, "updates": 3}, "step": 7}
    save_checkpoint(path, model_state=state, config={"a": 1}, **entries)
    if half:
        export_weights(path, path)
    before = torch.load(path)
    replace_config(path, other, {"a": 2})
    after = torch.load(other)
    assert (before.pop("config"), after.pop("config")) == ({"a": 1}, {"a": 2})
    assert before.keys() == after.keys()
    for name, value in before["model"].items():
        assert torch.equal(after["model"][name], value)
        assert after["model"][name].dtype == value.dtype
    assert after.get("step") == before.get("step")
    assert ("ema" in after) != half


_EVAL = "sparse_dset.data.transforms.eval_transforms"


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        (None, View((64, 96))),
        ({"_target_": _EVAL, "size": [64, 96]}, View((64, 96))),
        ({"_target_": _EVAL, "size": [96, 96], "mode": "letterbox"}, View((96, 96), "letterbox")),
        ({"_target_": "elsewhere.Transform"}, View((64, 96))),
    ],
)
def test_a_checkpoint_from_before_views_says_which_is_assumed(
    tmp_path: Path, transforms: dict | None, expected: View
) -> None:
    config = compose_config("detector", ["model=nano", "model.image_size=[64,96]"])
    model = build_from_config(config, pretrained=False)
    assert config["model"].pop("view") is None
    if transforms is not None:
        config["data"] = {"val": {"transforms": transforms}}
    save_checkpoint(tmp_path / "x.pt", model_state=model.state_dict(), config=config)
    with pytest.warns(UserWarning, match=r"x\.pt does not say how .*set model\.view") as told:
        loaded = load_detector(tmp_path / "x.pt")
    assert loaded.view == expected
    assert str(expected) in str(told[0].message)


@pytest.mark.parametrize("content", [{"model": None}, {"ema": {"module": None}}, {"epoch": 3}])
def test_a_checkpoint_without_weights_is_refused(content: dict) -> None:
    with pytest.raises(ValueError, match="no 'model' entry"):
        model_weights(content)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.empty(3, device="meta"), "'weight' of model must hold values"),
        (torch.eye(3).to_sparse(), "'weight' of model must be in dense memory"),
    ],
)
def test_tensors_without_values_in_dense_memory_are_refused(
    tmp_path: Path, value: torch.Tensor, message: str
) -> None:
    save_checkpoint(tmp_path / "x.pt", model_state={"weight": value}, config={})
    with pytest.raises(ValueError, match=rf"x\.pt: {message}"):
        load_checkpoint(tmp_path / "x.pt")

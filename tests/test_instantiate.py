from __future__ import annotations

import pytest

from sparse_dset import build_detector
from sparse_dset.config import build_from_config, compose_config
from sparse_dset.engine.checkpoint import load_detector, save_checkpoint
from sparse_dset.instantiate import instantiate

TEXTS = ["${x}", "???", "{0}", "%s", "a.b", "${oc.env:HOME}", "\\${x}", "_target_", "null", "a,b"]


def test_targets_are_made_from_the_inside_out() -> None:
    made = instantiate(
        {
            "outer": {
                "_target_": "builtins.dict",
                "inner": [{"_target_": "fractions.Fraction", "numerator": 3}, {"plain": 1}],
            },
            "later": {"_target_": "builtins.dict", "_partial_": True, "a": 1},
        }
    )
    assert made["outer"] == {"inner": [3, {"plain": 1}]}
    assert made["later"](b=2) == {"a": 1, "b": 2}


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_text(text: str) -> None:
    made = instantiate({"_target_": "builtins.dict", "name": text, "names": [text]})
    assert made == {"name": text, "names": [text]}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "nowhere.Nothing"}, "_target_=nowhere.Nothing cannot be found"),
        ({"_target_": None}, "_target_=None cannot be found"),
        ({"_target_": ["a"]}, "_target_=.* cannot be found"),
        ({"_target_": "json"}, "_target_=json is a module, which cannot be called"),
        ({"_target_": "sparse_dset.nothing"}, "_target_=sparse_dset.nothing cannot be found"),
        (
            {"_target_": "fractions.Fraction", "_partial_": True, "x": 1},
            "fractions.Fraction: .*'x'",
        ),
        ({"_target_": "fractions.Fraction", "numeratr": 1}, "it takes numerator, denominator"),
    ],
)
def test_a_target_that_cannot_be_called_is_named(node: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instantiate(node)


def test_what_a_target_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        instantiate([{"_target_": "fractions.Fraction", "numerator": 1, "denominator": 0}])


def test_an_entry_that_a_part_of_the_model_does_not_take_is_named() -> None:
    with pytest.raises(ValueError, match="TimmBackbone: .*'dpth'; it takes name"):
        build_detector("nano", 3, ["+model.backbone.dpth=3"])


def test_class_names_of_a_checkpoint_are_text(tmp_path) -> None:
    config = compose_config("detector", ["model=nano", f"model.num_classes={len(TEXTS)}"])
    config["model"]["class_names"] = TEXTS
    model = build_from_config(config, pretrained=False)
    save_checkpoint(tmp_path / "x.pt", model_state=model.state_dict(), config=config)
    assert list(load_detector(tmp_path / "x.pt").class_names) == TEXTS


def test_checkpoints_in_the_home_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = compose_config("detector", ["model=nano", "model.num_classes=2"])
    model = build_from_config(config, pretrained=False)
    save_checkpoint("~/runs/x.pt", model_state=model.state_dict(), config=config)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert load_detector("~/runs/x.pt").num_classes == 2

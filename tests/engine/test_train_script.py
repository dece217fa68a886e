"""What scripts/train.py does before the first step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_dset import build_detector
from sparse_dset.data.view import View
from sparse_dset.engine.checkpoint import load_checkpoint, load_detector

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


@pytest.fixture
def train(tmp_path):
    """Runs the script for one step on three drawn scenes."""
    root = tmp_path / "data"
    drawing = [sys.executable, "-m", "sparse_dset.data.synthetic", "--root", str(root)]
    subprocess.run([*drawing, "--train", "2", "--val", "1", "--size", "96", "160"], check=True)

    def run(*overrides):
        common = ["data=synthetic", f"data.root={root}", "data.size=[96,160]", "model=nano"]
        limits = ["train.max_steps=1", "train.batch_size=2", "train.num_workers=0"]
        place = f"train.output_dir={tmp_path / 'run'}"
        return subprocess.run(
            [sys.executable, str(SCRIPT), *common, *limits, place, *overrides],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.slow
def test_a_backbone_that_the_weights_lack_is_the_pretrained_one(train, tmp_path):
    weights = build_detector("nano", 3, pretrained=False).decoder.state_dict(prefix="decoder.")
    torch.save({"model": weights, "config": {}}, tmp_path / "decoder.pt")
    done = train(f"weights={tmp_path / 'decoder.pt'}")
    assert done.returncode == 0, done.stderr
    trained = load_checkpoint(tmp_path / "run" / "last.pt")["model"]
    frozen = next(name for name in trained if "conv_stem" in name)
    expected = build_detector("nano", 3).state_dict()[frozen]
    torch.testing.assert_close(trained[frozen], expected, rtol=0, atol=0)


@pytest.mark.slow
def test_resume_starts_what_is_not_there_and_goes_on_with_what_is(train, tmp_path):
    last = tmp_path / "run" / "last.pt"
    first = train("resume=true", "train.execution=dense")
    assert first.returncode == 0, first.stderr
    assert f"{last} is not there yet: a new run" in first.stdout
    assert load_checkpoint(last)["step"] == 1
    assert load_detector(last).execution == "dense"  # as it was trained
    again = train("train.execution=dense")
    assert "continue it with resume=true" in again.stderr
    again = train("resume=true", "train.execution=dense", f"weights={last}")
    assert "'weights_name': (" in again.stderr
    again = train("resume=true", "train.execution=dense", "train.max_steps=2", "train.epochs=72")
    assert again.returncode == 0, again.stderr
    assert load_checkpoint(last)["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["model.num_classes=9", "model.class_names=[x,y,z]"])
def test_other_classes_than_those_of_the_data_are_refused(train, asked):
    done = train(asked)
    assert done.returncode != 0
    assert "is asked for, but" in done.stderr
    assert "leave it out, the data decides" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "view"),
    [
        ("data.view.mode=letterbox", View((96, 160), "letterbox")),
        ("++data.val.transforms.mode=letterbox", View((96, 160), "letterbox")),
        ("data.val.transforms.size=[64,64]", View((64, 64))),
    ],
)
def test_the_checkpoint_sees_what_its_validation_saw(train, tmp_path, asked, view):
    done = train(asked)
    assert done.returncode == 0, done.stderr
    last = tmp_path / "run" / "last.pt"
    assert load_checkpoint(last)["config"]["model"]["view"] == view.as_config()
    assert load_detector(last).view == view


@pytest.mark.slow
def test_a_validation_that_cannot_be_described_is_refused(train):
    done = train("data.val.transforms=null")
    assert done.returncode != 0
    assert "data.val.transforms must be a sparse_dset.data.view.View" in done.stderr


NAMES = ["${oc.env:HOME}", "a=b|<b>{x}%s", "$x^2$\n../日本"]


@pytest.mark.slow
def test_names_of_classes_and_files_are_text_all_the_way(train, tmp_path):
    root = tmp_path / "data"
    for path in (root / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        for category, name in zip(content["categories"], NAMES, strict=True):
            category["name"] = name
        for number, image in enumerate(content["images"]):
            name = f"${{x}}=%s [{{{number}}}] #{path.stem}.png"
            (root / "images" / image["file_name"]).rename(root / "images" / name)
            image["file_name"] = name
        path.write_text(json.dumps(content))
    done = train()
    assert done.returncode == 0, done.stderr
    model = load_detector(tmp_path / "run" / "last.pt")
    assert list(model.class_names) == NAMES
    (found,) = model.predict([torch.rand(3, 96, 160)], threshold=0.0)
    assert found["names"] == [NAMES[label] for label in found["labels"]]
    (row,) = map(json.loads, (tmp_path / "run" / "results.jsonl").read_text().splitlines())
    assert {f"AP/{name}" for name in NAMES} <= row["val"].keys()
    assert row["config"]["model"]["class_names"] == NAMES

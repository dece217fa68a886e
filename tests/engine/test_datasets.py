from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from sparse_dset.benchmark.validation import find_validation_set, open_validation_set
from sparse_dset.engine.datasets import open_dataset
from tests.engine.stubs import open_coco


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    open_coco(tmp_path)
    return {
        "_target_": "sparse_dset.data.coco.CocoDetection",
        "root": str(tmp_path),
        "annotations": str(tmp_path / "annotations.json"),
    }


def _change(settings: dict[str, Any], **entries: Any) -> None:
    path = Path(settings["annotations"])
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("key", ["data.train", "data.val"])
def test_a_missing_file_is_named_with_the_key_that_gives_it(
    settings: dict[str, Any], key: str
) -> None:
    settings["annotations"] = "/nowhere/instances.json"
    with pytest.raises(FileNotFoundError, match=r"/nowhere/instances\.json is not there") as error:
        open_dataset(settings, key)
    assert f"{key}.annotations=" in str(error.value)
    assert ("data.val=null" in str(error.value)) == (key == "data.val")


def test_a_set_without_images_is_refused(settings: dict[str, Any]) -> None:
    _change(settings, images=[], annotations=[])
    for key in ("data.train", "data.val"):
        with pytest.raises(ValueError, match="no image"):
            open_dataset(settings, key)


@pytest.mark.parametrize("crowd", [False, True])
def test_a_validation_without_boxes_is_warned_of(settings: dict[str, Any], crowd: bool) -> None:
    content = json.loads(Path(settings["annotations"]).read_text())
    boxes = [{**one, "iscrowd": 1} for one in content["annotations"]] if crowd else []
    _change(settings, annotations=boxes)
    with pytest.warns(UserWarning, match="AP is n/a"):
        assert len(open_dataset(settings, "data.val")) == 6


def test_a_set_with_boxes_is_opened(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_dataset(settings, "data.val")) == 6


@pytest.mark.parametrize("data", [None, {}, {"root": "/x", "val": None}])
def test_scripts_that_need_validation_images_say_how_to_give_them(data: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"data=coco data\.root=/path"):
        open_validation_set(data, None, ["car"])


@pytest.mark.parametrize("asked", [None, {"root": "/x", "val": None}])
def test_measurements_without_validation_images_take_random_ones(
    asked: Any, capsys: pytest.CaptureFixture
) -> None:
    record = {"model": {"class_names": ["car"]}, "data": {"val": None}}
    assert find_validation_set(asked, record) is None
    assert "random images and no AP" in capsys.readouterr().out

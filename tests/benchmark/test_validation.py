from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sparse_dset.benchmark.validation import find_validation_set, open_validation_set, sample_images
from sparse_dset.data.images import ImageReader
from sparse_dset.data.view import View, reader_config
from tests.benchmark.sets import coco_config


def test_the_data_must_have_the_classes_of_the_model(tmp_path: Path) -> None:
    data = coco_config(tmp_path)
    assert len(open_validation_set(data, class_names=["car", "bus"])) == 5
    with pytest.raises(ValueError, match=r"classes \['bus', 'car'\], but .*\['car', 'bus'\]"):
        open_validation_set(data, class_names=["bus", "car"])


def test_images_are_spread_over_the_data_and_have_the_size_asked_for(tmp_path: Path) -> None:
    data = coco_config(tmp_path)
    images = sample_images(open_validation_set(data), 2)
    assert images.shape == (2, 3, 64, 96)
    assert images[:, 0].amax((1, 2)).tolist() == pytest.approx([0.0, 40 / 255], abs=1e-3)
    assert sample_images(open_validation_set(data, [32, 64]), 7).shape == (7, 3, 32, 64)


@pytest.mark.parametrize(
    "view", [View((64, 96), "letterbox"), View((32, 32)), View((40, 50), "letterbox")], ids=str
)
def test_images_are_seen_as_the_model_sees_them(tmp_path: Path, view: View) -> None:
    data = coco_config(tmp_path)
    with pytest.warns(UserWarning, match="as the model's validation saw them; the data conf"):
        dataset = open_validation_set(data, view=view)
    assert dataset.transforms == view
    images = sample_images(dataset, 2)
    assert images.shape == (2, 3, *view.size_of(48, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_validation_set(data, view=View((64, 96)))
    with pytest.warns(UserWarning, match="Give size"):
        smaller = open_validation_set(data, size=[32, 64], view=view)
    assert smaller.transforms == View((32, 64), view.mode)
    dark = replace(view, reader=ImageReader(background=(0, 0, 0)))
    data["val"]["reader"] = reader_config(ImageReader(max_pixels=10**9))
    with pytest.warns(UserWarning, match=r"read by ImageReader\(background=\(0, 0, 0\)"):
        own = open_validation_set(data, view=dark)
    assert own.reader == ImageReader(background=(0, 0, 0), max_pixels=10**9)


def test_images_of_several_sizes_are_those_of_the_most_frequent(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = coco_config(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    Image.new("RGB", (48, 64)).save(tmp_path / "0.png")
    content["images"][0] |= {"height": 64, "width": 48}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data["val"]["transforms"] = View((64, 64), "letterbox").as_config()
    images = sample_images(open_validation_set(data), 4)
    assert images.shape == (4, 3, 48, 64)
    assert "images: the 4 of 5 that are seen as 48x64 pixels" in capsys.readouterr().out


def test_absent_data_is_an_error_only_where_it_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = coco_config(tmp_path)
    (tmp_path / "instances.json").unlink()
    record = {"data": data, "model": {"class_names": ["car", "bus"]}}
    assert find_validation_set(None, record) is None
    assert "random images and no AP" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"instances\.json"):
        find_validation_set(data, record)

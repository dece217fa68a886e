from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparse_dset.config import compose_config
from sparse_dset.data.annotations import build_records, read_annotations, read_categories
from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.images import ImageReadError
from sparse_dset.instantiate import instantiate

PATH = Path("annotations.json")
SIZE = (48, 64)


def content(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "ä.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 5, 16, 16]}],
        "categories": [{"id": 1, "name": "Tür"}],
        **changes,
    }


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_every_encoding_of_json_is_read(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(content(), ensure_ascii=False).encode(encoding))
    assert read_annotations(path) == content()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps(content(), ensure_ascii=False).encode("latin-1"), "save it as UTF-8"),
        (gzip.compress(json.dumps(content()).encode()), r"compressed \(gzip\)"),
        (b'{"images": [], "images": [], "annotations": [], "categories": []}', "'images'"),
        (b'{"images": [{"id": 1, "id": 2}], "annotations": [], "categories": []}', "'id'"),
        (b"[" * 100_000, "is not a json file"),
        (b'{"images": ' + b"9" * 10_000 + b"}", "is not a"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, data, message):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.json is not a.*{message}|{message}"):
        read_annotations(path)


def test_the_order_of_keys_and_further_keys_do_not_matter(tmp_path):
    path = tmp_path / "a.json"
    turned = {"extra": None, **dict(reversed(content().items())), "licenses": "none"}
    path.write_text(json.dumps(turned))
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "ä.png")
    (record,) = CocoDetection(tmp_path, path).records
    assert record.boxes.tolist() == [[4, 5, 20, 21]]


@pytest.mark.parametrize("value", [1, "1", 1.0, " 1 ", "1.0"])
def test_ids_are_numbers_however_they_are_written(value):
    given = content(
        images=[{"id": value, "file_name": "x"}],
        categories=[{"id": value, "name": None}],
        annotations=[
            {"id": None, "image_id": value, "category_id": value, "bbox": [1, 1, 4, 4], "area": "9"}
        ],
    )
    assert read_categories(given, PATH) == ((1,), ("1",))
    (record,) = build_records(given, {1: (PATH, SIZE)}, (1,), PATH)
    assert record.areas.tolist() == [9]


@pytest.mark.parametrize(
    "value", [10**30, 1e300, float("nan"), float("inf"), True, [1], "1.5", "9" * 5000]
)
def test_what_is_no_id_is_refused(value):
    with pytest.raises(ValueError, match="category id must be a whole number") as error:
        read_categories(content(categories=[{"id": value, "name": "x"}]), PATH)
    assert len(str(error.value)) < 300


def records(*entries: dict[str, Any]) -> list[Any]:
    annotations = [{"id": n, "image_id": 1, "category_id": 1, **e} for n, e in enumerate(entries)]
    return build_records(content(annotations=annotations), {1: (PATH, SIZE)}, (1,), PATH)


def test_dropped_boxes_are_counted_by_reason_once():
    good = {"bbox": ["4", "5", "16", "16"]}
    polygon = {"segmentation": [[4, 5, 20, 5, 20, 21]]}
    bad = [{}, {"bbox": [1, 2]}, {"bbox": [1, 2, 0, 4]}, {"bbox": [1, 2, -3, 4]}]
    message = (
        r"4 boxes are dropped: 2 without an area, 1 without a box, and without a polygon or mask "
        r"to take one from, 1 not four finite numbers; image ids: 1$"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        (record,) = records(good, polygon, *bad)
    assert len(caught) == 1
    assert record.boxes.tolist() == [[4, 5, 20, 21]] * 2
    assert record.labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    "entry", [{}, {"bbox": [1, 2, 0, 4]}, {"bbox": [900, 2, 4, 4]}, {"bbox": "none"}]
)
def test_boxes_of_which_none_can_be_used_are_refused(entry):
    with pytest.raises(ValueError, match=r"annotations\.json: none of its 2 boxes can be used"):
        records(entry, entry)


def roboflow(root_objects: int = 0) -> dict[str, Any]:
    first = {"id": 0, "name": "things", "supercategory": "none"}
    others = [{"id": i, "name": f"c{i}", "supercategory": "things"} for i in (1, 2)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": category, "bbox": [4, 5, 16, 16]}
        for n, category in enumerate([1, 2] + [0] * root_objects)
    ]
    return content(categories=[first, *others], annotations=annotations)


def test_a_root_category_is_told_with_the_switch_that_drops_it():
    with pytest.warns(UserWarning, match=r"0 \('things'\).*data\.drop_root_category=true"):
        assert read_categories(roboflow(), PATH)[0] == (0, 1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_categories(roboflow(), PATH, drop_root=True) == ((1, 2), ("c1", "c2"))


def test_a_root_category_with_objects_is_a_class():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_categories(roboflow(root_objects=3), PATH)[0] == (0, 1, 2)
    with pytest.raises(ValueError, match=r"has 3 objects, so that it can't be dropped"):
        read_categories(roboflow(root_objects=3), PATH, drop_root=True)


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 1, "name": "car", "supercategory": "car"}],
        [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
        [
            {"id": 1, "name": "a", "supercategory": "x"},
            {"id": 2, "name": "b", "supercategory": "x"},
        ],
        [
            {"id": 1, "name": "a", "supercategory": "b"},
            {"id": 2, "name": "b", "supercategory": "a"},
        ],
        [{"id": 1, "name": "", "supercategory": ""}, {"id": 2, "name": "b", "supercategory": ""}],
    ],
)
@pytest.mark.parametrize("drop", [False, True])
def test_other_categories_are_classes(categories, drop):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids, _ = read_categories(content(categories=categories), PATH, drop)
    assert ids == tuple(entry["id"] for entry in categories)


@pytest.mark.parametrize("option", ["coco", "synthetic", "aerial"])
def test_the_switches_reach_training_and_validation(option, tmp_path):
    folders = ("images", "train2017", "val2017")
    for folder in folders:
        (tmp_path / folder).mkdir()
        Image.new("RGB", SIZE[::-1]).save(tmp_path / folder / "ä.png")
    (tmp_path / "annotations").mkdir()
    for name in ("train", "val", "train2017", "val2017"):
        path = tmp_path / "annotations" / f"instances_{name}.json"
        path.write_text(json.dumps(roboflow()))
    given = [f"data={option}", f"data.root={tmp_path}", "data.drop_root_category=true"]
    plain = compose_config("train", given)["data"]
    for part in (plain["train"].get("dataset", plain["train"]), plain["val"]):
        assert instantiate(part).class_names == ("c1", "c2")
    for folder in folders:
        (tmp_path / folder / "ä.png").unlink()
    plain = compose_config("train", [*given, "data.on_error=skip"])["data"]
    for part in (plain["train"].get("dataset", plain["train"]), plain["val"]):
        with pytest.raises(ImageReadError, match="no picture can be read"):
            instantiate(part)


@pytest.mark.parametrize(
    "name",
    [
        "${oc.env:HOME}",
        "a=b",
        "{x}",
        "%s",
        "$x^2$",
        "../x",
        "<b>",
        "a|b",
        "",
        "日本\n語",
        "None",
        "\\",
    ],
)
def test_names_of_classes_are_text(name):
    given = content(categories=[{"id": 1, "name": name}])
    assert read_categories(given, PATH)[1] == (name,)


def test_half_a_character_is_no_text():
    given = content(categories=[{"id": 5, "name": "\ud83d"}])
    with pytest.raises(ValueError, match="category 5 is no text"):
        read_categories(given, PATH)
    given = content(categories=[{"id": 5, "name": json.loads('"\\ud83d\\ude00"')}])
    assert read_categories(given, PATH)[1] == ("😀",)

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from sparse_dset.data.coco import CocoDetection
from tests.data.coco_files import SIDE, coco_file


def test_sample_has_the_promised_form(tmp_path):
    dataset = CocoDetection(tmp_path, coco_file(tmp_path, {7: [[16, 8, 32, 16]]}))
    image, target = dataset[0]
    assert image.dtype == torch.float32
    assert image.shape == (3, SIDE, SIDE)
    assert image.is_contiguous()
    assert image.min() >= 0
    assert 0.9 < image.max() <= 1
    assert type(image) is torch.Tensor
    assert type(target["boxes"]) is torch.Tensor
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[0.5, 0.25, 0.5, 0.25]]
    assert target["labels"].dtype == torch.int64
    assert target["image_id"] == 7
    assert target["size"] == target["orig_size"] == (SIDE, SIDE)


@pytest.mark.parametrize("ids", [(6,), (3, 7, 900), (900, 3, 7), (0, 1), ("2", "10")])
def test_category_ids_become_labels_in_order(tmp_path, ids):
    annotations = [
        {"id": n, "image_id": 1, "category_id": i, "bbox": [n, n, 5, 5]} for n, i in enumerate(ids)
    ]
    path = coco_file(tmp_path, {1: []}, category_ids=ids, annotations=annotations)
    dataset = CocoDetection(tmp_path, path)
    numbers = [int(i) for i in ids]
    assert dataset.category_ids == tuple(sorted(numbers))
    assert dataset.class_names == tuple(f"class {i}" for i in sorted(numbers))
    assert dataset.num_classes == len(ids)
    labels = dataset[0][1]["labels"].tolist()
    assert [dataset.category_ids[label] for label in labels] == numbers


def test_num_classes_below_the_files_is_refused(tmp_path):
    path = coco_file(tmp_path, {1: []}, category_ids=(3, 7, 900))
    with pytest.raises(ValueError, match=r"3 categories.*num_classes=2"):
        CocoDetection(tmp_path, path, num_classes=2)
    with pytest.warns(UserWarning, match="no boxes"):
        assert CocoDetection(tmp_path, path, num_classes=5).num_classes == 5


def test_names_are_unique(tmp_path):
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "car"}, {"id": 3}]
    path = coco_file(tmp_path, {1: [[1, 1, 5, 5]]}, categories=categories)
    names = CocoDetection(tmp_path, path).class_names
    assert names == ("car (category 1)", "car (category 2)", "3")


def test_images_without_boxes_are_kept(tmp_path):
    dataset = CocoDetection(tmp_path, coco_file(tmp_path, {1: [[1, 1, 5, 5]], 2: [], 3: []}))
    assert len(dataset) == 3
    target = dataset[1][1]
    assert target["boxes"].shape == (0, 4)
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64


def test_a_file_without_any_box_gives_one_warning(tmp_path):
    path = coco_file(tmp_path, {1: [], 2: []})
    with pytest.warns(UserWarning, match="no boxes at all") as caught:
        dataset = CocoDetection(tmp_path, path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert len(dataset) == 2


@pytest.mark.parametrize(
    "bad",
    [
        [10, 10, 0, 5],
        [10, 10, 5, 0],
        [10, 10, -4, 5],
        [float("nan"), 1, 2, 2],
        [1, 1, float("inf"), 2],
        [10**400, 1, 2, 2],
        [64, 10, 5, 5],
        [-10, 10, 5, 5],
        [10, 10, 1e-9, 5],
        [10, 10, 5],
        [10, 10, None, 5],
        [],
        None,
    ],
)
def test_bad_boxes_are_dropped_and_told(tmp_path, bad):
    path = coco_file(tmp_path, {41: [bad, [8, 8, 16, 16]], 42: [[1, 1, 5, 5]]})
    with pytest.warns(UserWarning, match=r"1 boxes are dropped.*image ids: 41$") as caught:
        dataset = CocoDetection(tmp_path, path)
    assert len(caught) == 1
    assert dataset[0][1]["boxes"].tolist() == [[0.25, 0.25, 0.25, 0.25]]


def test_dropped_boxes_are_counted_in_one_warning(tmp_path):
    path = coco_file(tmp_path, {i: [[1, 1, 0, 0], [1, 1, 5, 5]] for i in range(30)})
    with pytest.warns(UserWarning, match=r"30 boxes.*0, 1, 2.* and 10 more") as caught:
        CocoDetection(tmp_path, path)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("bbox", "inside"),
    [
        ([60, 60, 20, 20], [60, 60, 64, 64]),
        ([-4, -6, 10, 10], [0, 0, 6, 4]),
        ([-9, -9, 999, 999], [0, 0, 64, 64]),
    ],
)
def test_boxes_are_clipped_to_the_image(tmp_path, bbox, inside):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = CocoDetection(tmp_path, coco_file(tmp_path, {1: [bbox]}))
    assert dataset.records[0].boxes.tolist() == [inside]


def test_a_minimal_file_gets_its_defaults(tmp_path):
    path = coco_file(tmp_path, {1: [[1, 2, 5, 6]]}, images=[{"id": 1, "file_name": "1.jpg"}])
    record = CocoDetection(tmp_path, path).records[0]
    assert record.size == (SIDE, SIDE)
    assert record.areas.tolist() == [30.0]
    assert record.crowd.tolist() == [False]


@pytest.mark.parametrize(("area", "expected"), [(12.5, 12.5), (None, 30.0), (float("nan"), 30.0)])
def test_the_files_area_is_taken_where_it_is_one(tmp_path, area, expected):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 5, 6], "area": area}
    path = coco_file(tmp_path, {1: []}, annotations=[annotation])
    assert CocoDetection(tmp_path, path).records[0].areas.tolist() == [expected]


def test_crowds_are_kept_but_not_trained_on(tmp_path):
    crowd = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 5, 6], "iscrowd": 1}
    single = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [8, 8, 16, 16], "iscrowd": 0}
    dataset = CocoDetection(tmp_path, coco_file(tmp_path, {1: []}, annotations=[crowd, single]))
    assert dataset.records[0].crowd.tolist() == [True, False]
    assert dataset[0][1]["boxes"].tolist() == [[0.25, 0.25, 0.25, 0.25]]


@pytest.mark.parametrize(
    ("value", "expected"), [(None, False), ("0", False), ("1", True), (True, True), (0.0, False)]
)
def test_a_crowd_is_what_says_so(tmp_path, value, expected):
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 5, 6], "iscrowd": value}
    path = coco_file(tmp_path, {1: []}, annotations=[box])
    assert CocoDetection(tmp_path, path).records[0].crowd.tolist() == [expected]


@pytest.mark.parametrize("value", ["false", "yes", 2, [1]])
def test_another_mark_of_a_crowd_is_refused(tmp_path, value):
    box = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 5, 6], "iscrowd": value}
    path = coco_file(tmp_path, {1: []}, annotations=[box])
    with pytest.raises(ValueError, match=r"annotation 7 \(image 1\): iscrowd must be 0 or 1, got"):
        CocoDetection(tmp_path, path)


@pytest.mark.parametrize(("image_id", "of"), [(1, "1"), ("1", 1), ("1", "1"), (1, 1.0)])
def test_ids_written_as_text_are_numbers(tmp_path, image_id, of):
    annotation = {"id": "a", "image_id": of, "category_id": "1", "bbox": [1, 2, 5, 6]}
    images = [{"id": image_id, "file_name": "1.jpg", "width": SIDE, "height": SIDE}]
    path = coco_file(tmp_path, {1: []}, images=images, annotations=[{**annotation, "id": 5}])
    dataset = CocoDetection(tmp_path, path)
    assert dataset.image_ids == [1]
    assert len(dataset[0][1]["labels"]) == 1


def _annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 5, 6], **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [_annotation(image_id="one")]}, "image_id must be a whole number.*'one'"),
        ({"annotations": [_annotation(image_id=None)]}, "image_id must be a whole number"),
        ({"annotations": [_annotation(image_id=1.5)]}, "image_id must be a whole number.*1.5"),
        ({"annotations": [_annotation(image_id=9)]}, "annotation 1 is of image 9"),
        ({"annotations": [_annotation(category_id=9)]}, "category 9.*categories are 1"),
        ({"annotations": [_annotation(), _annotation()]}, "annotation ids must be unique.*1"),
        ({"images": [{"id": 1, "file_name": "1.jpg"}] * 2}, "image ids must be unique.*1"),
        ({"images": [{"id": "x", "file_name": "1.jpg"}]}, "image id must be a whole number"),
        ({"images": [{"file_name": "1.jpg"}]}, "image id must be a whole number.*None"),
        ({"images": [{"id": 1}]}, "image 1 has no file_name"),
        ({"images": [], "annotations": []}, "no images"),
        ({"images": [1]}, "'images' must list objects"),
        ({"categories": [{"id": 1}, {"id": 1}]}, "category ids must be unique"),
        ({"categories": []}, "no categories"),
        ({"categories": None}, "'categories' is missing"),
        ({"annotations": None}, "'annotations' is missing"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, changes, message):
    path = coco_file(tmp_path, {1: [[1, 1, 5, 5]]}, **changes)
    with pytest.raises(ValueError, match=message) as error:
        CocoDetection(tmp_path, path)
    assert "annotations.json" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"images": []}'])
def test_other_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is not a"):
        CocoDetection(tmp_path, path)


def test_boxes_in_another_unit_are_told_from_where_the_data_set_is_opened(tmp_path):
    path = coco_file(tmp_path, {1: [[40, 40, 60, 60]]})
    with pytest.warns(UserWarning, match="probably corners") as caught:
        CocoDetection(tmp_path, path)
    assert [w.filename for w in caught] == [__file__]


def test_the_aerial_images_load(aerial_root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for split in ("train", "val", "train_mixed", "val_mixed"):
            CocoDetection(
                aerial_root / "images", aerial_root / f"annotations/instances_{split}.json"
            )
    dataset = CocoDetection(aerial_root / "images", aerial_root / "annotations/instances_val.json")
    assert len(dataset) == 68
    assert dataset.class_names == ("car", "minibus", "bus")
    image, target = dataset[0]
    assert image.shape == (3, *target["size"])
    assert sum(len(record.labels) for record in dataset.records) == 758

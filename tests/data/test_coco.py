from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.collate import collate
from sparse_dset.data.images import ImageReader, ImageReadError

SIDE = 64


def picture(path: Path, width: int = SIDE, height: int = SIDE, **options: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


def coco_file(
    folder: Path,
    boxes: dict[Any, list[Any]],
    *,
    category_ids: tuple = (1,),
    draw: bool = True,
    **changes: Any,
) -> Path:
    """A file with one image per key of ``boxes``; every box is of the first category."""
    if draw:
        for image_id in boxes:
            picture(folder / f"{image_id}.jpg")
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in boxes
        ],
        "annotations": [
            {"image_id": i, "category_id": category_ids[0], "bbox": bbox}
            for i, listed in boxes.items()
            for bbox in listed
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
    }
    for number, annotation in enumerate(content["annotations"], 1):
        annotation["id"] = number
    path = folder / "annotations.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


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


def _sideways(folder: Path, size: tuple[int, int]) -> Path:
    """A picture stored 100 wide and 40 high that stands upright; ``size`` is (w, h) in the json."""
    pixels = np.zeros((40, 100, 3), dtype=np.uint8)
    pixels[:, :50] = (255, 0, 0)  # turned clockwise (tag 6): the upper half
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "photo.jpg", exif=exif, quality=95)
    images = [{"id": 1, "file_name": "photo.jpg", "width": size[0], "height": size[1]}]
    return coco_file(folder, {1: [[5, 60, 20, 30], [5, 5, 20, 30]]}, draw=False, images=images)


def test_pictures_are_turned_upright(tmp_path):
    image, target = CocoDetection(tmp_path, _sideways(tmp_path, (40, 100)))[0]
    assert image.shape == (3, 100, 40)
    assert target["size"] == target["orig_size"] == (100, 40)
    assert torch.allclose(target["boxes"][0], torch.tensor([0.375, 0.75, 0.5, 0.3]))
    assert image[0, :45].min() > 0.9
    assert image[0, 55:].max() < 0.1


def test_the_upright_size_is_read_where_the_file_gives_none(tmp_path):
    _sideways(tmp_path, (40, 100))
    images = [{"id": 1, "file_name": "photo.jpg"}]
    path = coco_file(tmp_path, {1: [[5, 60, 20, 30]]}, draw=False, images=images)
    dataset = CocoDetection(tmp_path, path)
    assert dataset.records[0].size == (100, 40)
    assert dataset[0][0].shape == (3, 100, 40)


def test_boxes_drawn_on_the_stored_view_get_the_stored_view(tmp_path):
    path = _sideways(tmp_path, (100, 40))
    with pytest.warns(UserWarning, match=r"1 boxes"):  # the first box lies below 40 rows
        image, target = CocoDetection(tmp_path, path)[0]
    assert image.shape == (3, 40, 100)
    assert target["orig_size"] == (40, 100)


def test_a_size_of_neither_view_is_refused_by_name(tmp_path):
    dataset = CocoDetection(tmp_path, _sideways(tmp_path, (50, 100)))
    with pytest.raises(ImageReadError, match=r"image 1: .*photo\.jpg.*40x100 upright.*50x100"):
        dataset[0]


def _with_broken(folder: Path, missing: bool = True) -> Path:
    """Four images; that of id 12 is missing or empty, that of id 13 cut to half of its bytes."""
    path = coco_file(folder, {i: [[8, 8, 16, 16]] for i in (11, 12, 13, 14)})
    (folder / "12.jpg").unlink() if missing else (folder / "12.jpg").write_bytes(b"")
    cut = folder / "13.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    return path


@pytest.mark.parametrize(("index", "num_workers"), [(1, 0), (2, 0), (2, 1)])
def test_broken_pictures_raise_with_path_and_id(tmp_path, index, num_workers):
    dataset = CocoDetection(tmp_path, _with_broken(tmp_path, missing=False))
    loader = DataLoader(dataset, 1, sampler=[index], num_workers=num_workers, collate_fn=collate)
    with pytest.raises(ImageReadError, match=rf"image {11 + index}: .*{11 + index}\.jpg"):
        list(loader)


def test_broken_pictures_raise_when_they_are_to_be_cached(tmp_path):
    with pytest.raises(ImageReadError, match=r"image 12: .*12\.jpg"):
        CocoDetection(tmp_path, _with_broken(tmp_path, missing=False), cache=True)


@pytest.mark.parametrize("cache", [False, True])
def test_skipped_pictures_are_listed_and_told(tmp_path, cache):
    path = _with_broken(tmp_path)
    with pytest.warns(UserWarning, match="2 images are skipped.*12, 13") as caught:
        dataset = CocoDetection(tmp_path, path, on_error="skip", cache=cache)
    assert len(caught) == 1
    assert dataset.image_ids == [11, 14]
    assert [target["image_id"] for _, target in map(dataset.__getitem__, range(2))] == [11, 14]
    assert list(dataset.skipped) == [12, 13]
    assert "13.jpg" in dataset.skipped[13]


def test_missing_pictures_of_unknown_size(tmp_path):
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "absent.jpg"}]
    path = coco_file(tmp_path, {1: [[1, 1, 5, 5]]}, images=images)
    with pytest.raises(ImageReadError, match=r"image 2: .*absent\.jpg"):
        CocoDetection(tmp_path, path)
    with pytest.warns(UserWarning, match="1 images are skipped"):
        assert list(CocoDetection(tmp_path, path, on_error="skip").skipped) == [2]


def test_a_set_of_broken_pictures_alone_is_refused(tmp_path):
    path = coco_file(tmp_path, {1: [[1, 1, 5, 5]]}, draw=False)
    with pytest.raises(ImageReadError, match=r"no picture can be read.*1\.jpg"):
        CocoDetection(tmp_path, path, on_error="skip")


def test_unknown_ways_to_treat_errors_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'raise' or 'skip'.*'ignore'"):
        CocoDetection(tmp_path, coco_file(tmp_path, {1: []}), on_error="ignore")  # type: ignore[arg-type]


def test_too_large_pictures_are_refused_by_name(tmp_path):
    path = coco_file(tmp_path, {5: [[1, 1, 5, 5]]})
    with pytest.raises(ImageReadError, match=r"image 5: .*5\.jpg: 64x64 .*max_pixels=100;"):
        CocoDetection(tmp_path, path, reader=ImageReader(max_pixels=100))[0]
    exact = CocoDetection(tmp_path, path, reader=ImageReader(max_pixels=SIDE * SIDE))
    assert exact[0][0].shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_files_that_are_no_pictures_are_refused_by_name(tmp_path, content):
    path = tmp_path / "odd.png"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"odd\.png"):
        ImageReader().read(path)


def test_the_cache_gives_the_same_samples_without_the_files(tmp_path):
    path = coco_file(tmp_path, {1: [[1, 1, 5, 5]], 2: []})
    plain = CocoDetection(tmp_path, path)
    expected = [plain[i][0] for i in range(2)]
    cached = CocoDetection(tmp_path, path, cache=True)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).unlink()
    assert all(torch.equal(cached[i][0], expected[i]) for i in range(2))
    cached[0][0].zero_()
    assert torch.equal(cached[0][0], expected[0])


def _save_pages(path: Path) -> None:
    pages = [Image.new("RGB", (SIDE, SIDE), (60 * i, 0, 0)) for i in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


@pytest.mark.parametrize("cache", [False, True])
def test_pages_are_told_once_in_a_data_set(tmp_path, cache):
    images = [{"id": i, "file_name": f"{i}.tif", "width": SIDE, "height": SIDE} for i in range(5)]
    for image in images:
        _save_pages(tmp_path / str(image["file_name"]))
    path = coco_file(tmp_path, {0: [[1, 1, 5, 5]]}, images=images)
    with pytest.warns(UserWarning, match=r"image 0: .*0\.tif has 3 pages.*Further") as caught:
        list(map(CocoDetection(tmp_path, path, cache=cache).__getitem__, range(5)))
    assert len(caught) == 1


def test_the_reader_of_a_data_set_reads_its_pictures(tmp_path):
    Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 0)).save(tmp_path / "x.png")
    images = [{"id": 1, "file_name": "x.png"}]
    path = coco_file(tmp_path, {1: [[1, 1, 5, 5]]}, images=images)
    green = CocoDetection(tmp_path, path, reader=ImageReader(background=(0, 255, 0)))
    assert green[0][0][:, 0, 0].tolist() == [0, 1, 0]


def test_boxes_in_another_unit_are_told_from_where_the_data_set_is_opened(tmp_path):
    path = coco_file(tmp_path, {1: [[40, 40, 60, 60]]})
    with pytest.warns(UserWarning, match="probably corners") as caught:
        CocoDetection(tmp_path, path)
    assert [w.filename for w in caught] == [__file__]


def test_pictures_that_are_not_there_are_told_when_the_data_set_is_opened(tmp_path):
    path = coco_file(tmp_path, {i: [[1, 1, 5, 5]] for i in range(1, 5)})
    for image_id in (2, 4):
        (tmp_path / f"{image_id}.jpg").unlink()
    message = rf"image 2: .*2\.jpg is not there.*root={tmp_path}.*2, 4: 2 of 4.*on_error='skip'"
    with pytest.raises(ImageReadError, match=message):
        CocoDetection(tmp_path, path)
    with pytest.warns(UserWarning, match="2 images are skipped"):
        assert CocoDetection(tmp_path, path, on_error="skip").image_ids == [1, 3]


@pytest.mark.parametrize("name", ["sub\\1.jpg", ".\\sub\\1.jpg", "./sub/1.jpg", "sub/../sub/1.jpg"])
def test_paths_of_other_systems_are_found(tmp_path, name):
    (tmp_path / "sub").mkdir()
    picture(tmp_path / "sub" / "1.jpg")
    images = [{"id": 1, "file_name": name, "width": SIDE, "height": SIDE}]
    path = coco_file(tmp_path, {1: [[1, 1, 5, 5]]}, draw=False, images=images)
    assert CocoDetection(tmp_path, path)[0][0].shape == (3, SIDE, SIDE)


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

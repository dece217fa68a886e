from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.collate import collate
from sparse_dset.data.images import ImageReader, ImageReadError
from tests.data.coco_files import SIDE, coco_file, picture


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

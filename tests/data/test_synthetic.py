from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from sparse_dset.data.synthetic import CLASSES, Scene, render_scene, write_dataset
from sparse_dset.data.synthetic.dataset import image_name, scene_seed
from sparse_dset.data.synthetic.layout import MAX_OBJECTS
from sparse_dset.data.synthetic.scene import MIN_SIDE

SMALL = {"height": 96, "width": 160}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed) for seed in range(48)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    return write_dataset(root, {"train": 5, "val": 3}, **SMALL, progress=False)


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    files = sorted(file for file in root.rglob("*") if file.is_file())
    return {str(f.relative_to(root)): (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


def test_same_seed_same_scene() -> None:
    first, second, other = render_scene(7), render_scene(7), render_scene(8)
    for field in dataclasses.fields(Scene):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name))
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize(("height", "width"), [(384, 640), (640, 640), (101, 67)])
def test_types_and_shapes(height: int, width: int) -> None:
    scene = render_scene(3, height, width)
    assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
    assert scene.ids.shape == (height, width) and scene.ids.dtype == np.uint8
    assert scene.boxes.shape == (len(scene.labels), 4) and scene.boxes.dtype == np.float32
    assert scene.labels.dtype == np.int64


def test_a_scene_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        render_scene(0, 64, 64).labels = np.zeros(0, np.int64)  # type: ignore[misc]


@pytest.mark.parametrize(("seed", "height", "width"), [(-1, 384, 640), (0, 63, 640), (0, 384, 0)])
def test_bad_arguments(seed: int, height: int, width: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        render_scene(seed, height, width)


def test_boxes_are_the_hulls_of_visible_pixels(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.ids.max() == len(scene.boxes)
        for index, box in enumerate(scene.boxes):
            y, x = np.nonzero(scene.ids == index + 1)
            hull = (x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min())
            assert tuple(box) == hull
            assert min(box[2:]) >= MIN_SIDE
            assert box[0] + box[2] <= 640 and box[1] + box[3] <= 384


def test_hidden_vehicles_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [len(render_scene(seed).boxes) for seed in range(12)]
    monkeypatch.setattr("sparse_dset.data.synthetic.scene.MIN_VISIBLE", 0.0)
    everything = [len(render_scene(seed).boxes) for seed in range(12)]
    assert all(a <= b for a, b in zip(usual, everything, strict=True))
    assert sum(usual) < sum(everything)


def test_objects_differ_from_their_surroundings(scenes: list[Scene]) -> None:
    contrasts = []
    for scene in scenes:
        grey = scene.image.mean(-1)
        for index, (x, y, w, h) in enumerate(scene.boxes.astype(int)):
            window = np.s_[max(y - 8, 0) : y + h + 8, max(x - 8, 0) : x + w + 8]
            inside = scene.ids[window] == index + 1
            contrasts.append(abs(grey[window][inside].mean() - grey[window][~inside].mean()))
    assert np.median(contrasts) > 8


def test_statistics(scenes: list[Scene]) -> None:
    counts = np.array([len(scene.boxes) for scene in scenes])
    assert (counts == 0).any() and (counts == 0).mean() < 0.25
    assert 6 < counts.mean() < 20 and counts.max() <= MAX_OBJECTS
    boxes = np.concatenate([scene.boxes for scene in scenes])
    width, height = np.median(boxes[:, 2:], axis=0)
    assert 20 < width < 40 and 15 < height < 32
    covered = np.array([(scene.ids > 0).mean() for scene in scenes])
    assert 0.01 < covered.mean() < 0.06
    shares = np.bincount(np.concatenate([s.labels for s in scenes]), minlength=3) / len(boxes)
    assert shares[0] > 0.6 and shares[1] > 0.08 and shares[2] > 0.02


def test_objects_gather(scenes: list[Scene]) -> None:
    cells = np.array([s.ids.reshape(12, 32, 20, 32).any(axis=(1, 3)).mean() for s in scenes])
    assert 0.05 < cells.mean() < 0.25


def test_written_set_is_coco(dataset: Path) -> None:
    for split, count in (("train", 5), ("val", 3)):
        coco = COCO(str(dataset / "annotations" / f"instances_{split}.json"))
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
        assert len(coco.imgs) == count
        for index, image in enumerate(coco.loadImgs(sorted(coco.imgs))):
            with Image.open(dataset / "images" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (160, 96)
            scene = render_scene(scene_seed(0, split, index), 96, 160)
            found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            assert [a["bbox"] for a in found] == scene.boxes.tolist()
            assert [a["category_id"] - 1 for a in found] == scene.labels.tolist()
            assert all(a["area"] == a["bbox"][2] * a["bbox"][3] > 0 for a in found)


def test_splits_are_independent() -> None:
    seeds = [scene_seed(seed, split, i) for seed in (0, 1) for split in ("train", "val")
             for i in range(50)]  # fmt: skip
    assert len(set(seeds)) == len(seeds)


def test_a_complete_set_is_kept(dataset: Path) -> None:
    before = snapshot(dataset)
    write_dataset(dataset, {"train": 5, "val": 3}, **SMALL, progress=False)
    assert snapshot(dataset) == before


@pytest.mark.parametrize("lost", ["manifest.json", "images/train_00001.jpg"])
def test_a_set_with_a_missing_file(tmp_path: Path, lost: str) -> None:
    root = write_dataset(tmp_path / "set", {"train": 2}, **SMALL, progress=False)
    content = {name: data for name, (data, _) in snapshot(root).items()}
    (root / lost).unlink()
    if lost == "manifest.json":
        with pytest.raises(FileExistsError, match="is not of a synthetic set"):
            write_dataset(root, {"train": 2}, **SMALL, progress=False)
    else:
        write_dataset(root, {"train": 2}, **SMALL, progress=False)
        assert {name: data for name, (data, _) in snapshot(root).items()} == content


def test_other_parameters_replace_the_set(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", {"train": 3}, **SMALL, progress=False)
    before = (root / "images" / image_name("train", 0)).read_bytes()
    write_dataset(root, {"train": 2}, **SMALL, seed=1, progress=False)
    assert sorted(p.name for p in (root / "images").iterdir()) == [
        image_name("train", 0),
        image_name("train", 1),
    ]
    assert (root / "images" / image_name("train", 0)).read_bytes() != before
    assert json.loads((root / "manifest.json").read_text())["seed"] == 1


def test_what_is_not_of_the_set_is_never_deleted(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", {"train": 2}, **SMALL, progress=False)
    (root / "images" / "mine.jpg").write_bytes(b"1")
    with pytest.raises(FileExistsError, match="mine.jpg is not of a synthetic set"):
        write_dataset(root, {"train": 1}, **SMALL, progress=False)
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text('{"name": "my app"}')
    with pytest.raises(FileExistsError, match="manifest.json is not of a synthetic set"):
        write_dataset(app, {"train": 1}, **SMALL, progress=False)
    assert sorted(p.name for p in app.iterdir()) == ["manifest.json"]


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []

    def interrupted(*args: int) -> Scene:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(args)
        return render_scene(*args)

    monkeypatch.setattr("sparse_dset.data.synthetic.dataset.render_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", {"train": 4}, **SMALL, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split 'val'"):
        write_dataset(tmp_path / "set", {"train": 1, "val": 0}, progress=False)


def test_command_line(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "set"
    arguments = ["--root", str(root), "--train", "2", "--val", "1", "--size", "64", "96"]
    subprocess.run([sys.executable, "-m", "sparse_dset.data.synthetic", *arguments], check=True)
    assert len(list((root / "images").iterdir())) == 3

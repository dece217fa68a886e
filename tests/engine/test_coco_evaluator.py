from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sparse_dset.data.coco import CocoDetection
from sparse_dset.engine.coco_evaluator import CocoEvaluator, ImageDetections, predictions_to_coco

# image id -> (label, xywh); image 30 holds nothing.
TRUTH = {
    0: [(0, [10, 10, 20, 20]), (1, [40, 40, 50, 50])],
    20: [(0, [5, 60, 40, 30])],
    30: [],
}
CATEGORY_IDS = (3, 900)


def open_truth(folder: Path, truth: dict[int, list] = TRUTH, **options: Any) -> CocoDetection:
    images, annotations = [], []
    for image_id, objects in truth.items():
        Image.new("RGB", (100, 100)).save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png"})
        annotations += [
            {"image_id": image_id, "category_id": CATEGORY_IDS[label], "bbox": box}
            for label, box in objects
        ]
    for number, annotation in enumerate(annotations):  # COCO's own code cannot take the id 0
        annotation["id"] = number
    categories = [{"id": 900, "name": "bus"}, {"id": 3, "name": "car"}]
    path = folder / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return CocoDetection(folder, path, **options)


@pytest.fixture
def dataset(tmp_path) -> CocoDetection:
    return open_truth(tmp_path)


def found(objects: list, score: float = 0.9) -> dict[str, Tensor]:
    corners = [[x, y, x + w, y + h] for _, (x, y, w, h) in objects]
    return {
        "scores": torch.full((len(objects),), score),
        "labels": torch.tensor([label for label, _ in objects], dtype=torch.int64),
        "boxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
    }


PERFECT = {image_id: found(objects) for image_id, objects in TRUTH.items()}
NOTHING = {image_id: found([]) for image_id in TRUTH}


def summary_of(dataset: CocoDetection, detections: dict) -> dict[str, float]:
    evaluator = CocoEvaluator(dataset)
    evaluator.update(detections)
    return evaluator.summarize()


def test_perfect_boxes_score_one(dataset, capsys):
    summary = summary_of(dataset, PERFECT)
    for name in ("AP", "AP50", "AP75", "APs", "APm", "AR100", "AP/car", "AP/bus", "AP50/car"):
        assert summary[name] == pytest.approx(1.0), name
    assert math.isnan(summary["APl"])  # there are no large objects
    assert summary["num_images"] == 3
    assert summary["num_skipped"] == summary["num_missing"] == 0
    assert all(type(value) is float for value in summary.values())
    assert capsys.readouterr().out == ""


def test_no_detections_score_zero(dataset):
    summary = summary_of(dataset, NOTHING)
    assert summary["AP"] == summary["AP50"] == summary["AR100"] == summary["AP/bus"] == 0.0


def test_nothing_to_find_has_no_score(tmp_path):
    with pytest.warns(UserWarning, match="no boxes"):
        dataset = open_truth(tmp_path, {1: [], 2: []})
    for detections in (found([]), found([(0, [1, 1, 5, 5])])):
        summary = summary_of(dataset, {1: detections, 2: found([])})
        assert math.isnan(summary["AP"])
        assert summary["num_images"] == 2


def test_wrong_classes_and_places_score_less(dataset):
    swapped = {i: {**d, "labels": 1 - d["labels"]} for i, d in PERFECT.items()}
    assert summary_of(dataset, swapped)["AP"] == 0.0
    shifted = {i: {**d, "boxes": d["boxes"] + 3} for i, d in PERFECT.items()}
    summary = summary_of(dataset, shifted)
    assert 0.0 < summary["AP"] < summary["AP50"]


def test_false_alarms_in_empty_images_count(dataset):
    alarm = {**PERFECT, 30: found([(0, [10, 10, 20, 20])], score=0.99)}
    assert summary_of(dataset, alarm)["AP/car"] < 0.75
    assert summary_of(dataset, alarm)["AP/bus"] == pytest.approx(1.0)


def test_scores_equal_those_of_coco_itself(dataset, tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = json.loads((tmp_path / "annotations.json").read_text())
    content["info"] = {}
    for number, annotation in enumerate(content["annotations"], 1):
        width, height = annotation["bbox"][2:]
        annotation.update(id=number, area=width * height, iscrowd=0)
    (tmp_path / "full.json").write_text(json.dumps(content))
    generator = torch.Generator().manual_seed(1)
    noisy = {
        i: {
            "scores": torch.rand(len(d["scores"]), generator=generator),
            "labels": d["labels"],
            "boxes": d["boxes"] + 4 * torch.rand(d["boxes"].shape, generator=generator),
        }
        for i, d in PERFECT.items()
    }
    results = predictions_to_coco(
        {i: ImageDetections(*(d[k].numpy() for k in d)) for i, d in noisy.items()}, CATEGORY_IDS
    )
    truth = COCO(str(tmp_path / "full.json"))
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    summary = summary_of(dataset, noisy)
    names = ["AP", "AP50", "AP75", "APs", "APm"]
    assert [summary[name] for name in names] == pytest.approx(evaluation.stats[:5].tolist())
    assert summary["AR100"] == pytest.approx(evaluation.stats[8])
    assert 0 < summary["AP"] < 1


@pytest.mark.parametrize("key", ["scores", "boxes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(dataset, key, value):
    broken = found([(0, [10, 10, 20, 20]), (1, [40, 40, 50, 50])])
    broken[key][1] = value
    evaluator = CocoEvaluator(dataset)
    with pytest.raises(ValueError, match=r"image 20: .*NaN or infinite"):
        evaluator.update({0: PERFECT[0], 20: broken})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([2])}, r"image 0: labels must be in 0\.\.1, got 2\.\.2"),
        ({"labels": torch.tensor([-1])}, "image 0: labels"),
        ({"labels": torch.tensor([0, 1])}, r"image 0: .*\[Q, 4\]"),
        ({"boxes": torch.zeros(2, 4)}, r"image 0: .*\[Q, 4\]"),
        ({"boxes": torch.tensor([[9.0, 1.0, 5.0, 5.0]])}, "image 0: .*x1 <= x2"),
    ],
)
def test_malformed_detections_are_refused(dataset, changes, message):
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(dataset).update({0: {**found([(0, [1, 1, 5, 5])]), **changes}})


def test_unknown_images_are_refused(dataset):
    with pytest.raises(ValueError, match="image 7 is not"):
        CocoEvaluator(dataset).update({7: found([])})


def test_classes_the_data_lack_count_for_nothing(tmp_path):
    dataset = open_truth(tmp_path, num_classes=5)
    extra = {**PERFECT, 30: found([(4, [1, 1, 5, 5])])}
    assert summary_of(dataset, extra)["AP"] == pytest.approx(1.0)


def test_images_left_out_are_an_error_or_told(dataset):
    evaluator = CocoEvaluator(dataset)
    evaluator.update({0: PERFECT[0]})
    with pytest.raises(RuntimeError, match=r"2 of 3 images were not evaluated.*image 20"):
        evaluator.summarize()
    summary = evaluator.summarize(partial=True)
    assert summary["AP"] == pytest.approx(1.0)
    assert summary["num_images"] == 1
    assert summary["num_missing"] == 2


def test_pictures_that_were_skipped_are_told(tmp_path):
    open_truth(tmp_path)
    (tmp_path / "20.png").write_bytes(b"")
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in TRUTH]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "images": images}))
    with pytest.warns(UserWarning, match="1 images are skipped"):
        dataset = CocoDetection(tmp_path, path, on_error="skip")
    with pytest.warns(UserWarning, match="leaves out 1 image"):
        summary = summary_of(dataset, {0: PERFECT[0], 30: PERFECT[30]})
    assert summary["num_skipped"] == 1
    assert summary["num_images"] == 2
    assert summary["AP"] == pytest.approx(1.0)


def test_an_image_counts_once(dataset):
    evaluator = CocoEvaluator(dataset)  # what two processes bring, of which both saw image 20
    evaluator.update({0: PERFECT[0], 20: found([(0, [5, 60, 40, 25])])})
    evaluator.update({20: found([(0, [5, 60, 40, 25])]), 30: PERFECT[30]})
    evaluator.update({30: PERFECT[30]})
    alone = summary_of(dataset, {**PERFECT, 20: found([(0, [5, 60, 40, 25])])})
    merged = evaluator.summarize()
    assert merged.pop("num_images") == alone.pop("num_images") == 3
    assert merged == pytest.approx(alone, nan_ok=True)


def test_crowds_are_neither_missed_nor_false(tmp_path):
    dataset = open_truth(tmp_path)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    crowd = {"id": 99, "image_id": 30, "category_id": 3, "bbox": [10, 10, 60, 60], "iscrowd": 1}
    content["annotations"].append(crowd)
    path.write_text(json.dumps(content))
    dataset = CocoDetection(tmp_path, path)
    assert summary_of(dataset, PERFECT)["AP/car"] == pytest.approx(1.0)
    inside = {**PERFECT, 30: found([(0, [12, 12, 20, 20])], score=0.99)}
    assert summary_of(dataset, inside)["AP/car"] == pytest.approx(1.0)


def test_results_have_cocos_format():
    detections = {
        8: ImageDetections(
            np.array([0.5, 0.25]), np.array([1, 2]), np.array([[1.0, 2, 4, 8], [0, 0, 1, 1]])
        )
    }
    assert predictions_to_coco(detections, CATEGORY_IDS) == [
        {
            "image_id": 8,
            "category_id": 900,
            "bbox": [1.0, 2.0, 3.0, 6.0],
            "score": 0.5,
            "area": 18.0,
            "iscrowd": 0,
        }
    ]


def test_bootstrap_samples_images_with_replacement(dataset):
    evaluator = CocoEvaluator(dataset)
    evaluator.update({**PERFECT, 20: found([])})
    samples = evaluator.bootstrap(200)
    # Of cars, image 0 is found and image 20 is not: a share of 0, 1 or in between by the draw.
    seen = {round(v, 2) for v in samples["AP/car"] if not math.isnan(v)}
    assert seen == {0.0, 0.34, 0.5, 0.66, 1.0}
    assert all(v == pytest.approx(1.0) for v in samples["AP/bus"] if not math.isnan(v))
    assert len(samples["AP"]) == 200
    again = CocoEvaluator(dataset)
    again.update(PERFECT)
    better = again.bootstrap(200)
    pairs = [(a, b) for a, b in zip(samples["AP/car"], better["AP/car"], strict=True) if a == a]
    assert pairs
    assert all(a <= b == pytest.approx(1.0) for a, b in pairs)
    with pytest.raises(RuntimeError, match="not evaluated"):
        CocoEvaluator(dataset).bootstrap(3)


@pytest.mark.parametrize(("count", "size"), [(150, 8), (101, 8), (260, 4)])
def test_the_cap_on_detections_is_a_setting(tmp_path, count, size):
    """Objects of one class in one image, all found; COCO's own cap leaves the hundred best."""
    boxes = [[(i % 20) * 5, (i // 20) * 5, size / 2, size / 2] for i in range(count)]
    truth = {0: [(0, box) for box in boxes], 1: [(1, boxes[0])]}
    dataset = open_truth(tmp_path, truth)
    detections = {image_id: found(objects) for image_id, objects in truth.items()}
    for cap in (count, count + 40):
        evaluator = CocoEvaluator(dataset, cap)
        evaluator.update(detections)
        summary = evaluator.summarize()
        for name in ("AP", "AP50", "APs", "AP/car", "AP50/car", f"AR{cap}"):
            assert summary[name] == pytest.approx(1.0)
        assert evaluator.bootstrap(3)["AP/car"].count(1.0) >= 1
    capped = summary_of(dataset, detections)
    assert capped["AR100"] == pytest.approx((100 / count + 1) / 2)
    assert capped["AP/car"] == pytest.approx(100 / count, abs=0.011)
    few = CocoEvaluator(dataset, 5)
    few.update(detections)
    assert few.summarize()["AR5"] == pytest.approx((5 / count + 1) / 2)
    with pytest.raises(ValueError, match="max_detections must be a whole number of at least 1"):
        CocoEvaluator(dataset, 0)

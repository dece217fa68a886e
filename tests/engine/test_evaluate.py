from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.view import View
from sparse_dset.engine.evaluate import evaluate, evaluation_loader
from sparse_dset.engine.loggers import append_row, environment, git_commit
from tests.engine.stubs import StubDetector, open_coco


class Oracle(nn.Module):
    """Knows the boxes of `open_coco`; its count of kept tokens differs between the images."""

    def __init__(self) -> None:
        super().__init__()
        self.stub = StubDetector()
        self.seen = 0

    def forward(self, images: torch.Tensor, **options: Any) -> Any:
        out = self.stub(images, **options)
        for i in range(len(images)):
            out.pred_logits[i] = -9.0
            out.pred_logits[i, 0, self.seen % 2] = 5.0
            out.pred_boxes[i, 0] = torch.tensor([14, 14, 12, 12]) / 32
            out.num_kept[i, 2] = self.seen % 5
            self.seen += 1
        return out


def still(image: torch.Tensor, target: dict) -> tuple[torch.Tensor, dict]:
    return image, target


def test_perfect_boxes_score_one_and_kept_tokens_are_counted(tmp_path: Path) -> None:
    data = open_coco(tmp_path, 5, transforms=still)
    model = Oracle().train()
    row = evaluate(
        model, evaluation_loader(data, 2), data, execution="sparse", keep_ratio=0.3, progress=False
    )
    assert row["AP"] == pytest.approx(1.0)
    assert row["num_images"] == 5
    assert row["kept_s3"] == 0.5
    assert row["kept_s5"] == pytest.approx((0 + 1 + 2 + 3 + 4) / 5 / 4)
    assert model.training
    assert model.stub.calls[0] == ("sparse", 0.3, 1.0, False)
    assert all(type(value) is float for value in row.values())


def test_images_that_were_left_out_are_an_error(tmp_path: Path) -> None:
    data = open_coco(tmp_path, 5)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(data, [0, 1]), collate_fn=evaluation_loader(data, 1).collate_fn
    )
    with pytest.raises(RuntimeError, match="3 of 5 images"):
        evaluate(StubDetector(), loader, data, progress=False)
    with pytest.raises(RuntimeError, match="5 of 5 images"):
        evaluate(StubDetector(), [], data, progress=False)
    with pytest.raises(ValueError, match="amp must be one of off, bf16, fp16; got 'fp8'"):
        evaluate(StubDetector(), loader, data, amp="fp8", progress=False)


def test_bf16_evaluation_is_close(tmp_path: Path) -> None:
    data = open_coco(tmp_path, 3, transforms=still)
    row = evaluate(Oracle(), evaluation_loader(data, 2), data, amp="bf16", progress=False)
    assert row["AP"] == pytest.approx(1.0)


class Crowd(nn.Module):
    """Tells 150 boxes in a grid, as its decoder says."""

    def __init__(self, queries: int = 150) -> None:
        super().__init__()
        self.stub = StubDetector()
        self.decoder = nn.Module()
        self.decoder.num_queries = queries

    def forward(self, images: torch.Tensor, **options: Any) -> Any:
        out = self.stub(images, **options)
        boxes = torch.tensor([CROWD]) / 100 + torch.tensor([0.02, 0.02, 0.0, 0.0])
        count = len(CROWD)
        return replace(
            out,
            pred_logits=torch.tensor([5.0, -9.0]).expand(len(images), count, 2),
            pred_boxes=boxes.expand(len(images), count, 4),
            query_mask=torch.ones(len(images), count, dtype=torch.bool),
        )


CROWD = [[(i % 20) * 5, (i // 20) * 5, 4, 4] for i in range(150)]


@pytest.fixture
def crowd(tmp_path: Path) -> CocoDetection:
    """Two images: one with 150 cars, one with a single car."""
    Image.new("RGB", (100, 100)).save(tmp_path / "0.png")
    boxes = [(1, box) for box in CROWD] + [(2, CROWD[0])]
    content = {
        "images": [{"id": i, "file_name": "0.png", "height": 100, "width": 100} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1, "bbox": box}
            for i, (image, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return CocoDetection(tmp_path, tmp_path / "a.json", View((32, 32)))


def test_more_objects_than_a_hundred_are_told_and_counted_with_another_cap(
    crowd: CocoDetection,
) -> None:
    def run(model: nn.Module, **options: Any) -> dict[str, float]:
        loader = evaluation_loader(crowd, 2)
        return evaluate(model, loader, crowd, progress=False, **options)

    model = Crowd()
    message = r"1 of 2 images hold more objects than max_detections=100 \(the most: 150\); .*set "
    with pytest.warns(UserWarning, match=message):
        capped = run(model)
    assert capped["AR100"] < 0.7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(model, max_detections=150)["AR150"] > capped["AR100"] + 0.3
        assert run(model, max_detections=400)["AR400"] > capped["AR100"] + 0.3
    with pytest.warns(UserWarning, match=r"than model.decoder.num_queries=60 \(the most: 150\)"):
        run(Crowd(queries=60), max_detections=150)


def test_rows_are_appended_and_a_cut_line_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    append_row(path, {"a": 1, "b": {"c": float("nan")}})
    with path.open("a") as file:
        file.write('{"cut": ')
    append_row(path, {"a": 2})
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {"a": 1, "b": {"c": None}}
    assert json.loads(lines[2]) == {"a": 2}
    with pytest.raises(TypeError):
        append_row(path, {"a": torch.zeros(1)})
    assert len(path.read_text().splitlines()) == 3


def test_environment_is_json() -> None:
    row = environment()
    json.dumps(row)
    assert row["torch"] == torch.__version__
    assert row["threads"] == torch.get_num_threads()
    assert row["commit"] == git_commit()

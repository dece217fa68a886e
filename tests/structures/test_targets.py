from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_dset.structures.targets import pad_targets


def make_target(
    labels: list[int], boxes: list[list[float]] | None = None, image_id: int = 7
) -> dict[str, Any]:
    if boxes is None:
        boxes = [[0.5, 0.5, 0.2, 0.2]] * len(labels)
    return {
        "labels": torch.tensor(labels, dtype=torch.int64),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "image_id": image_id,
    }


def test_pads_to_the_largest_image() -> None:
    padded = pad_targets([make_target([2]), make_target([]), make_target([0, 1])], 3, "cpu")
    assert padded.labels.tolist() == [[2, 0], [0, 0], [0, 1]]
    assert padded.mask.tolist() == [[True, False], [False, False], [True, True]]
    assert padded.boxes.shape == (3, 2, 4)
    assert padded.boxes[0, 1].tolist() == [0, 0, 0, 0]


def test_a_batch_without_objects() -> None:
    padded = pad_targets([make_target([]), make_target([])], 3, "cpu")
    assert padded.boxes.shape == (2, 0, 4)
    assert padded.mask.shape == padded.labels.shape == (2, 0)


@pytest.mark.parametrize("label", [-1, 3, 6])
def test_label_out_of_range_names_image_and_both_numbers(label: int) -> None:
    with pytest.raises(ValueError, match=rf"image 41: label {label} .* 3 classes"):
        pad_targets([make_target([0]), make_target([1, label], image_id=41)], 3, "cpu")


@pytest.mark.parametrize(
    "box",
    [
        [0.5, 0.5, 0.0, 0.1],
        [0.5, 0.5, 0.1, -0.2],
        [float("nan"), 0.5, 0.1, 0.1],
        [0.5, 0.5, float("inf"), 0.1],
    ],
)
def test_bad_box_names_the_image(box: list[float]) -> None:
    with pytest.raises(ValueError, match="image 41: box"):
        pad_targets([make_target([0]), make_target([0], [box], image_id=41)], 3, "cpu")


@pytest.mark.parametrize(
    "box", [[-3.0, 0.5, 0.1, 0.1], [0.5, 1.2, 0.1, 0.3], [0.0, -0.3, 0.1, 0.5]]
)
def test_a_box_outside_of_its_image_is_refused(box: list[float]) -> None:
    with pytest.raises(ValueError, match=r"image 5: box .* must be cxcywh in \[0, 1\]"):
        pad_targets([make_target([0], [box], image_id=5)], 3, "cpu")


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="image 7: labels must be"):
        pad_targets([make_target([0, 1], [[0.5, 0.5, 0.2, 0.2]])], 3, "cpu")


def test_what_is_wrong_with_a_target_is_named() -> None:
    box = torch.tensor([[50.0, 50.0, 20.0, 20.0]])
    with pytest.raises(ValueError, match="divide pixels"):
        pad_targets([{"labels": torch.tensor([0]), "boxes": box}], 1, "cpu")
    with pytest.raises(ValueError, match="integers"):
        pad_targets([{"labels": torch.tensor([0.7]), "boxes": box / 100}], 1, "cpu")
    assert pad_targets([{"labels": torch.tensor([0]), "boxes": box / 100}], 1, "cpu").mask.all()


def test_an_image_without_objects_does_not_choose_the_types() -> None:
    empty = {"labels": torch.zeros(0, dtype=torch.bool), "boxes": torch.zeros(0, 4).long()}
    box = torch.tensor([[0.3, 0.4, 0.1, 0.2]])
    padded = pad_targets([empty, {"labels": torch.tensor([300]), "boxes": box}], 400, "cpu")
    assert padded.labels[1].tolist() == [300]
    torch.testing.assert_close(padded.boxes[1], box)

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou as torchvision_iou
from torchvision.ops import generalized_box_iou

from sparse_dset.structures.boxes import (
    box_giou,
    box_iou,
    box_l1,
    cxcywh_to_xyxy,
    pairwise_giou,
    pairwise_iou,
    pairwise_l1,
    xyxy_to_cxcywh,
)


def random_boxes(count: int) -> torch.Tensor:
    return torch.cat([torch.rand(count, 2), torch.rand(count, 2) * 0.4 + 0.01], dim=1)


def test_conversions_are_inverse() -> None:
    boxes = random_boxes(50)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)
    assert cxcywh_to_xyxy(torch.tensor([0.5, 0.4, 0.2, 0.4])).tolist() == pytest.approx(
        [0.4, 0.2, 0.6, 0.6]
    )


def test_overlaps_equal_torchvision() -> None:
    first, second = random_boxes(40), random_boxes(30)
    corners = cxcywh_to_xyxy(first), cxcywh_to_xyxy(second)
    torch.testing.assert_close(pairwise_iou(first, second), torchvision_iou(*corners))
    torch.testing.assert_close(pairwise_giou(first, second), generalized_box_iou(*corners))


def test_elementwise_is_the_diagonal_of_pairwise() -> None:
    first, second = random_boxes(20), random_boxes(20)
    torch.testing.assert_close(box_iou(first, second), pairwise_iou(first, second).diagonal())
    torch.testing.assert_close(box_giou(first, second), pairwise_giou(first, second).diagonal())
    torch.testing.assert_close(box_l1(first, second), pairwise_l1(first, second).diagonal())


@pytest.mark.parametrize("size", [0.0, -0.3, 1e-20])
def test_degenerate_boxes_give_finite_values_and_gradients(size: float) -> None:
    boxes = torch.tensor([[0.5, 0.5, size, size], [0.1, 0.2, size, 0.3]], requires_grad=True)
    iou, giou = pairwise_iou(boxes, boxes), pairwise_giou(boxes, boxes)
    (iou + giou).sum().backward()
    torch.testing.assert_close(iou, torch.zeros(2, 2))
    assert (giou.abs() <= 1).all()
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    boxes = random_boxes(10).half()
    overlap = pairwise_iou(boxes, boxes)
    assert overlap.dtype == torch.float32
    torch.testing.assert_close(overlap.diagonal(), torch.ones(10))


def test_no_boxes() -> None:
    assert pairwise_giou(torch.rand(2, 3, 4), torch.rand(2, 0, 4)).shape == (2, 3, 0)
    assert pairwise_l1(torch.rand(2, 3, 4), torch.rand(2, 0, 4)).shape == (2, 3, 0)

from __future__ import annotations

import pytest
import torch

from sparse_dset.losses.dense import DenseSupervision, task_aligned_assign
from sparse_dset.structures.boxes import box_giou, box_iou
from sparse_dset.structures.outputs import DensePredictions
from sparse_dset.structures.targets import PaddedTargets, pad_targets

CLASSES = 3


def random_targets(*counts: int, size: float = 0.4) -> PaddedTargets:
    targets = [
        {
            "labels": torch.randint(CLASSES, (count,)),
            "boxes": torch.cat([torch.rand(count, 2), torch.rand(count, 2) * size + 5e-3], dim=1),
            "image_id": image,
        }
        for image, count in enumerate(counts)
    ]
    return pad_targets(targets, CLASSES, "cpu")


def grid_tokens(batch: int, *sizes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres, cell sizes and anchor boxes (cxcywh) of square levels."""
    centers, cells = [], []
    for size in sizes:
        steps = (torch.arange(size) + 0.5) / size
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        centers.append(torch.stack([x.flatten(), y.flatten()], dim=1))
        cells.append(torch.full((size * size, 2), 1 / size))
    center = torch.cat(centers).expand(batch, -1, -1)
    cell = torch.cat(cells).expand(batch, -1, -1)
    return center, cell, torch.cat([center, 2 * cell], dim=2)


def reference_assign(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    centers: torch.Tensor,
    token_sizes: torch.Tensor,
    token_mask: torch.Tensor,
    targets: PaddedTargets,
    topk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One object and one token at a time."""
    index = torch.full(token_mask.shape, -1)
    overlap_of, alignment_of = torch.zeros(token_mask.shape), torch.zeros(token_mask.shape)
    for image, slot in targets.mask.nonzero().tolist():
        goal, label = targets.boxes[image, slot], int(targets.labels[image, slot])
        found = []
        for token in token_mask[image].nonzero().flatten().tolist():
            offset = (centers[image, token] - goal[:2]).abs()
            inside = bool((offset <= goal[2:] / 2).all())
            if inside or bool((offset <= 1.5 * token_sizes[image, token]).all()):
                overlap = max(float(box_iou(boxes[image, token], goal)), 0.01)
                score = max(float(scores[image, token, label]), 1e-4)
                found.append((score * overlap**6, overlap, token))
        for alignment, overlap, token in sorted(found, reverse=True)[:topk]:
            if overlap > overlap_of[image, token]:
                index[image, token] = slot
                overlap_of[image, token] = overlap
                alignment_of[image, token] = alignment
    quality = torch.zeros(token_mask.shape)
    for image, slot in targets.mask.nonzero().tolist():
        mine = index[image] == slot
        if mine.any():
            scale = overlap_of[image][mine].max() / alignment_of[image][mine].max()
            quality[image][mine] = alignment_of[image][mine] * scale
    return index, quality


@pytest.mark.parametrize("topk", [1, 4, 10])
def test_equals_a_reference_that_loops(topk: int) -> None:
    targets = random_targets(6, 0, 3)
    centers, cells, anchors = grid_tokens(3, 8, 4, 2)
    # Different boxes and scores everywhere: no ties to break.
    boxes = (anchors + 0.05 * torch.randn_like(anchors)).clamp(0.01, 1)
    scores = torch.rand(*boxes.shape[:2], CLASSES)
    token_mask = torch.rand(boxes.shape[:2]) < 0.9
    arguments = scores, boxes, centers, cells, token_mask, targets
    index, quality = task_aligned_assign(*arguments, topk=topk)
    expected_index, expected_quality = reference_assign(*arguments, topk)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(quality, expected_quality, rtol=1e-4, atol=1e-6)
    assert (index >= 0).any()
    assert (index[1] == -1).all()


def test_objects_smaller_than_a_cell_get_tokens() -> None:
    targets = random_targets(20, size=1e-3)
    centers, cells, anchors = grid_tokens(1, 32, 16, 8)
    scores = torch.full((*anchors.shape[:2], CLASSES), 0.01)
    token_mask = torch.ones(anchors.shape[:2], dtype=torch.bool)
    index, quality = task_aligned_assign(scores, anchors, centers, cells, token_mask, targets)
    assert index[index >= 0].unique().numel() >= 18
    assert (quality[index >= 0] > 0).all()


def random_predictions(batch: int, *sizes: int, spread: float = 0.0) -> DensePredictions:
    """Predictions of every token, which learn; boxes are spread around the anchors."""
    centers, cells, anchors = grid_tokens(batch, *sizes)
    boxes = (anchors.logit(eps=1e-4) + spread * torch.randn(anchors.shape)).sigmoid()
    return DensePredictions(
        logits=torch.randn(*boxes.shape[:2], CLASSES).requires_grad_(),
        boxes=boxes.requires_grad_(),
        centers=centers,
        cell_sizes=cells,
        mask=torch.ones(boxes.shape[:2]).bool(),
    )


def gradients(predictions: DensePredictions, targets: PaddedTargets) -> list[torch.Tensor]:
    losses = DenseSupervision()(predictions, targets)
    learning = [predictions.logits, predictions.boxes]
    return list(torch.autograd.grad(sum(losses.values()), learning))  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (700, 1)])
def test_losses_and_gradients_are_finite(counts: tuple[int, ...]) -> None:
    predictions, targets = random_predictions(2, 16, 8), random_targets(*counts)
    losses = DenseSupervision()(predictions, targets)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients(predictions, targets))
    if not any(counts):
        assert losses["loss_dense_box"] == 0
        assert losses["loss_dense_cls"] > 0


def test_losses_equal_the_formula() -> None:
    predictions = random_predictions(2, 8, 4, spread=0.1)
    predictions.mask[1, 40:] = False
    targets = random_targets(4, 2)
    losses = DenseSupervision(weight_cls=0.5, weight_box=3.0)(predictions, targets)

    logits, boxes, mask = predictions.logits, predictions.boxes, predictions.mask
    index, quality = task_aligned_assign(
        logits.sigmoid(), boxes, predictions.centers, predictions.cell_sizes, mask, targets
    )
    expected_cls = expected_box = torch.zeros(())
    for image, token in mask.nonzero().tolist():
        slot = int(index[image, token])
        for label in range(CLASSES):
            p = logits[image, token, label].sigmoid()
            if slot >= 0 and label == int(targets.labels[image, slot]):
                q = quality[image, token]
                expected_cls = expected_cls - q * (q * p.log() + (1 - q) * (1 - p).log())
            else:
                expected_cls = expected_cls - 0.75 * p.detach() ** 2 * (1 - p).log()
        if slot >= 0:
            box, goal = boxes[image, token], targets.boxes[image, slot]
            distance = 1 - box_giou(box, goal) + (box - goal).abs().sum()
            expected_box = expected_box + quality[image, token] * distance
    divisor = quality.sum().clamp(min=1)
    torch.testing.assert_close(losses["loss_dense_cls"], 0.5 * expected_cls / divisor)
    torch.testing.assert_close(losses["loss_dense_box"], 3.0 * expected_box / divisor)


def test_masked_tokens_take_no_part() -> None:
    predictions = random_predictions(1, 8)
    predictions.mask[0, 50:] = False
    with torch.no_grad():
        predictions.boxes[0, 50:] = 1.0
    for gradient in gradients(predictions, random_targets(5)):
        assert gradient.isfinite().all()
        assert not gradient[0, 50:].any()


@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_no_tokens(counts: tuple[int, ...]) -> None:
    nothing = torch.zeros(2, 0, 4)
    predictions = DensePredictions(
        logits=torch.zeros(2, 0, CLASSES).requires_grad_(),
        boxes=nothing.clone().requires_grad_(),
        centers=nothing[..., :2],
        cell_sizes=nothing[..., 2:],
        mask=torch.zeros(2, 0, dtype=torch.bool),
    )
    targets = random_targets(*counts)
    assert all(value == 0 for value in DenseSupervision()(predictions, targets).values())
    assert all(gradient.numel() == 0 for gradient in gradients(predictions, targets))

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sparse_dset.losses.cass import CassLoss, Kind, Shape, cass_targets
from sparse_dset.structures.targets import PaddedTargets, pad_targets

HEIGHT, WIDTH = 9, 12
EXTENTS = torch.tensor([[9.0, 12.0], [6.5, 7.25], [9.0, 12.0]])


def random_targets(*counts: int) -> PaddedTargets:
    targets = [
        {
            "labels": torch.zeros(count, dtype=torch.int64),
            "boxes": torch.cat([torch.rand(count, 2), torch.rand(count, 2) * 0.3 + 1e-3], dim=1),
            "image_id": image,
        }
        for image, count in enumerate(counts)
    ]
    return pad_targets(targets, 1, "cpu")


def one_box(*box: float) -> PaddedTargets:
    target: dict[str, Any] = {
        "labels": torch.zeros(1, dtype=torch.int64),
        "boxes": torch.tensor([box]),
        "image_id": 0,
    }
    return pad_targets([target], 1, "cpu")


def reference(
    targets: PaddedTargets, extents: torch.Tensor, band: float, min_size: float, shape: str
) -> torch.Tensor:
    """One image, one box and one cell at a time."""
    goal = torch.zeros(len(extents), HEIGHT, WIDTH)
    for image, slot in targets.mask.nonzero().tolist():
        rows, columns = extents[image].tolist()
        cx, cy, w, h = targets.boxes[image, slot].tolist()
        cx, cy, w, h = cx * columns, cy * rows, max(w * columns, min_size), max(h * rows, min_size)
        for y in range(HEIGHT):
            for x in range(WIDTH):
                out_x = max(abs(x + 0.5 - cx) - w / 2, 0) / (band * w)
                out_y = max(abs(y + 0.5 - cy) - h / 2, 0) / (band * h)
                distance = math.hypot(out_x, out_y)
                value = 0.0
                if distance <= 1:
                    value = math.exp(-4.5 * distance**2) if shape == "gaussian" else 1 - distance
                if x <= cx < x + 1 and y <= cy < y + 1:
                    value = 1.0
                goal[image, y, x] = max(float(goal[image, y, x]), value)
    return goal


@pytest.mark.parametrize("shape", ["gaussian", "linear"])
@pytest.mark.parametrize(("band", "min_size"), [(0.3, 1.0), (1.2, 2.0), (0.5, 0.0)])
def test_equals_a_reference_that_loops(shape: Shape, band: float, min_size: float) -> None:
    targets = random_targets(4, 7, 0)
    goal = cass_targets(targets, HEIGHT, WIDTH, EXTENTS, band=band, min_size=min_size, shape=shape)
    torch.testing.assert_close(goal, reference(targets, EXTENTS, band, min_size, shape))
    assert not goal[2].any()


def test_box_is_one_and_the_band_falls() -> None:
    goal = cass_targets(
        one_box(0.5, 0.5, 4 / 12, 3 / 9), HEIGHT, WIDTH, EXTENTS[:1], band=1.0, shape="linear"
    )
    row = goal[0, 4]
    assert row[4:8].tolist() == [1.0] * 4
    assert row[:4].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])


@pytest.mark.parametrize("box", [(1.0, 1.0, 1e-3, 1e-3), (0.0, 0.0, 1e-3, 1e-3)])
def test_a_center_on_the_border_marks_the_last_valid_cell(box: tuple[float, ...]) -> None:
    extents = torch.tensor([[6.5, 7.0]])
    goal = cass_targets(one_box(*box), HEIGHT, WIDTH, extents, band=0.0, min_size=0.0)
    assert goal[0].nonzero().tolist() == [[6, 6] if box[0] else [0, 0]]


def test_no_objects() -> None:
    assert not cass_targets(random_targets(0, 0), HEIGHT, WIDTH, EXTENTS[:2]).any()


@pytest.mark.parametrize(
    ("loss", "balanced"), [("focal", False), ("varifocal", False), ("varifocal", True)]
)
@pytest.mark.parametrize("counts", [(3, 0, 1), (0, 0, 0), (700, 1, 0)])
def test_loss_is_finite_and_falls_by_gradient_descent(
    loss: Kind, balanced: bool, counts: tuple[int, ...]
) -> None:
    criterion = CassLoss(weight=1.0, loss=loss, balanced=balanced)
    targets = random_targets(*counts)
    valid = torch.ones(3, HEIGHT, WIDTH, dtype=torch.bool)
    scores = torch.randn(3, HEIGHT, WIDTH, requires_grad=True)
    before = criterion(scores, valid, targets, EXTENTS)
    (gradient,) = torch.autograd.grad(before, scores)
    assert gradient.isfinite().all()
    assert criterion(scores - 0.1 * gradient, valid, targets, EXTENTS) < before


@pytest.mark.parametrize("loss", ["focal", "varifocal"])
def test_loss_equals_the_formula(loss: Kind) -> None:
    targets = random_targets(3, 2, 0)
    valid = torch.rand(3, HEIGHT, WIDTH) < 0.8
    scores = torch.randn(3, HEIGHT, WIDTH)
    goal, p = cass_targets(targets, HEIGHT, WIDTH, EXTENTS)[valid], scores[valid].sigmoid()
    entropy = -(goal * p.log() + (1 - goal) * (1 - p).log())
    weight = (goal - p) ** 2 if loss == "focal" else goal + 0.75 * p**2 * (1 - goal)
    expected = 0.05 * (weight * entropy).sum() / goal.sum()
    value = CassLoss(weight=0.05, loss=loss)(scores, valid, targets, EXTENTS)
    torch.testing.assert_close(value, expected)


def test_a_balanced_loss_gives_every_object_the_same_weight() -> None:
    targets = random_targets(3, 2, 0)
    valid = torch.rand(3, HEIGHT, WIDTH) < 0.8
    scores = torch.randn(3, HEIGHT, WIDTH)
    goal = cass_targets(targets, HEIGHT, WIDTH, EXTENTS) * valid
    p = scores.sigmoid()
    entropy = -(goal * p.log() + (1 - goal) * (1 - p).log()) * valid
    positive = torch.zeros_like(scores)
    for image, count in enumerate((3, 2)):
        for i in range(count):
            box = PaddedTargets(
                targets.labels[image, i].view(1, 1),
                targets.boxes[image, i].view(1, 1, 4),
                torch.ones(1, 1, dtype=torch.bool),
                1.0,
            )
            own = cass_targets(box, HEIGHT, WIDTH, EXTENTS[image : image + 1])[0] * valid[image]
            positive[image] += own / max(float(own.sum()), 1.0)
    expected = (positive * entropy).sum() / positive.sum()
    expected += (0.75 * p**2 * (1 - goal) * entropy).sum() / goal.sum()
    value = CassLoss(weight=0.05, balanced=True)(scores, valid, targets, EXTENTS)
    torch.testing.assert_close(value, 0.05 * expected)


def test_padding_takes_no_part_and_half_precision_stays_finite() -> None:
    valid = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    valid[:, :6, :7] = True
    scores = ((torch.rand(3, HEIGHT, WIDTH) * 2 - 1) * 3e4).half().masked_fill(~valid, math.inf)
    scores.requires_grad_()
    loss = CassLoss()(scores, valid, random_targets(3, 0, 1), EXTENTS)
    loss.backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[~valid].any()


@pytest.mark.parametrize(
    "setting",
    [
        {"loss": "bce"},
        {"shape": "box"},
        {"band": -0.1},
        {"min_size": -1.0},
        {"balanced": True, "loss": "focal"},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        CassLoss(**setting)

from __future__ import annotations

import pytest
import torch

from sparse_dset.losses.matched import SetCriterion
from sparse_dset.losses.matcher import HungarianMatcher
from sparse_dset.models.decoder.denoising import make_denoising_queries
from sparse_dset.structures.boxes import box_giou, box_iou
from sparse_dset.structures.outputs import DenoisingPredictions, Predictions
from sparse_dset.structures.targets import PaddedTargets, pad_targets

CLASSES = 3


def random_boxes(*shape: int) -> torch.Tensor:
    return torch.cat([torch.rand(*shape, 2), torch.rand(*shape, 2) * 0.4 + 0.01], dim=-1)


def random_targets(*counts: int) -> PaddedTargets:
    targets = [
        {
            "labels": torch.randint(CLASSES, (count,)),
            "boxes": random_boxes(count),
            "image_id": image,
        }
        for image, count in enumerate(counts)
    ]
    return pad_targets(targets, CLASSES, "cpu")


def random_predictions(
    batch: int, queries: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> Predictions:
    logits = (torch.rand(batch, queries, CLASSES) * 2 - 1) * scale
    return Predictions(
        logits.to(dtype).requires_grad_(), random_boxes(batch, queries).to(dtype).requires_grad_()
    )


def all_real(batch: int, queries: int) -> torch.Tensor:
    return torch.ones(batch, queries, dtype=torch.bool)


def assert_finite_gradients(*predictions: Predictions) -> None:
    for tensor in [tensor for layer in predictions for tensor in (layer.logits, layer.boxes)]:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@torch.no_grad()
def reference_losses(
    layer: Predictions, targets: PaddedTargets, query_mask: torch.Tensor
) -> dict[str, float]:
    """One query and one class at a time."""
    (matches,) = HungarianMatcher()([layer], query_mask, targets)
    target_of = {
        (int(b), int(q)): int(t)
        for b, q, t in zip(
            matches.batch_index, matches.query_index, matches.target_index, strict=True
        )
    }
    total = {"vfl": 0.0, "bbox": 0.0, "giou": 0.0}
    for image, query in query_mask.nonzero().tolist():
        slot = target_of.get((image, query))
        if slot is not None:
            box, goal = layer.boxes[image, query], targets.boxes[image, slot]
            total["bbox"] += 5 * float((box - goal).abs().sum())
            total["giou"] += 2 * float(1 - box_giou(box, goal))
        for label in range(CLASSES):
            p = float(layer.logits[image, query, label].sigmoid())
            weight, score = 0.75 * p**2, 0.0
            if slot is not None and label == int(targets.labels[image, slot]):
                weight = score = float(box_iou(box, goal))
            entropy = torch.nn.functional.binary_cross_entropy(torch.tensor(p), torch.tensor(score))
            total["vfl"] += weight * float(entropy)
    return {name: value / max(int(targets.mask.sum()), 1) for name, value in total.items()}


def test_equals_a_reference_that_loops() -> None:
    targets, query_mask = random_targets(3, 0, 2), torch.rand(3, 8) < 0.7
    layers = [random_predictions(3, 8) for _ in range(2)]
    encoder = random_predictions(3, 8)
    losses = SetCriterion(HungarianMatcher())(layers, encoder, query_mask, targets, None)
    assert len(losses) == 9
    for suffix, layer in [("_aux_0", layers[0]), ("", layers[1]), ("_enc", encoder)]:
        for name, value in reference_losses(layer, targets, query_mask).items():
            assert losses[f"loss_{name}{suffix}"].item() == pytest.approx(value, rel=1e-4)


def test_masked_queries_take_no_part() -> None:
    targets, layer = random_targets(2, 1), random_predictions(2, 6)
    query_mask = all_real(2, 6)
    query_mask[:, 4:] = False
    with torch.no_grad():
        layer.logits[:, 4:] = float("-inf")
        layer.boxes[:, 4:] = 1e4
    short = Predictions(layer.logits[:, :4], layer.boxes[:, :4])
    criterion = SetCriterion(HungarianMatcher())
    losses = criterion([layer], layer, query_mask, targets)
    expected = criterion([short], short, all_real(2, 4), targets)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert_finite_gradients(layer)
    assert layer.logits.grad is not None
    assert not layer.logits.grad[:, 4:].any()


def test_a_batch_without_objects() -> None:
    layer, encoder = random_predictions(2, 5), random_predictions(2, 5)
    criterion = SetCriterion(HungarianMatcher())
    losses = criterion([layer], encoder, all_real(2, 5), random_targets(0, 0))
    assert losses["loss_vfl"] > 0
    for name in ("loss_bbox", "loss_giou", "loss_bbox_enc", "loss_giou_enc"):
        assert losses[name].requires_grad
        assert losses[name] == 0
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert_finite_gradients(layer, encoder)


@pytest.mark.parametrize("counts", [(0, 1, 700), (350, 2, 0)])
def test_crowded_images_with_denoising(counts: tuple[int, ...]) -> None:
    targets = random_targets(*counts)
    queries = make_denoising_queries(targets, 300, CLASSES, num_denoising=100)
    assert queries is not None
    width = queries.labels.shape[1]
    layers = [random_predictions(3, 300) for _ in range(2)]
    denoising = DenoisingPredictions(tuple(random_predictions(3, width) for _ in range(2)), queries)
    losses = SetCriterion(HungarianMatcher())(
        layers, layers[0], all_real(3, 300), targets, denoising
    )
    assert {"loss_vfl_dn_0", "loss_giou_dn_1", "loss_bbox_dn_1"} <= set(losses)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert_finite_gradients(*layers, *denoising.layers)


def test_denoising_losses_do_not_depend_on_the_number_of_groups() -> None:
    targets = random_targets(2, 1)
    criterion, layer = SetCriterion(HungarianMatcher()), random_predictions(2, 4)
    values = []
    for num_denoising in (2, 20):
        queries = make_denoising_queries(targets, 4, CLASSES, num_denoising)
        assert queries is not None
        shape = queries.labels.shape
        same = Predictions(torch.full((*shape, CLASSES), 0.3), torch.full((*shape, 4), 0.5))
        losses = criterion(
            [layer], layer, all_real(2, 4), targets, DenoisingPredictions((same,), queries)
        )
        values.append([losses[f"loss_{name}_dn_0"] for name in ("vfl", "bbox", "giou")])
    torch.testing.assert_close(values[0], values[1])


def test_denoising_positives_that_restore_their_objects_have_no_box_loss() -> None:
    targets = random_targets(4, 1)
    queries = make_denoising_queries(targets, 4, CLASSES, num_denoising=8)
    assert queries is not None
    restored = targets.boxes.gather(1, queries.target_index[..., None].expand(-1, -1, 4))
    logits = torch.zeros(*queries.labels.shape, CLASSES)
    layer = random_predictions(2, 4)
    losses = SetCriterion(HungarianMatcher())(
        [layer],
        layer,
        all_real(2, 4),
        targets,
        DenoisingPredictions((Predictions(logits, restored),), queries),
    )
    assert float(losses["loss_bbox_dn_0"]) == 0
    assert float(losses["loss_giou_dn_0"]) == pytest.approx(0, abs=1e-5)


def test_half_precision_at_large_scale_stays_finite() -> None:
    layers = [random_predictions(2, 20, torch.float16, 3e4) for _ in range(2)]
    losses = SetCriterion(HungarianMatcher())(
        layers, layers[1], all_real(2, 20), random_targets(5, 0)
    )
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert_finite_gradients(*layers)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="weights must have the keys"):
        SetCriterion(HungarianMatcher(), weights={"vfl": 1.0, "box": 5.0})

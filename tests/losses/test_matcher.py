from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from sparse_dset.losses.matcher import HungarianMatcher
from sparse_dset.structures.boxes import box_giou
from sparse_dset.structures.outputs import Predictions
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


def random_predictions(batch: int, queries: int) -> Predictions:
    return Predictions(torch.randn(batch, queries, CLASSES), random_boxes(batch, queries))


def pair_cost(logit: torch.Tensor, box: torch.Tensor, target: torch.Tensor) -> float:
    p = logit.double().sigmoid()
    positive = 0.25 * (1 - p) ** 2 * -p.log()
    negative = 0.75 * p**2 * -(1 - p).log()
    l1 = (box - target).abs().sum()
    return float(2 * (positive - negative) + 5 * l1 - 2 * box_giou(box, target))


def test_cost_equals_the_formula() -> None:
    targets, predictions = random_targets(3, 2), random_predictions(2, 4)
    cost = HungarianMatcher().cost(predictions, targets)
    for image, query, slot in [(0, 0, 0), (0, 3, 2), (1, 1, 0), (1, 2, 1)]:
        label = targets.labels[image, slot]
        expected = pair_cost(
            predictions.logits[image, query, label],
            predictions.boxes[image, query],
            targets.boxes[image, slot],
        )
        assert float(cost[image, query, slot]) == pytest.approx(expected, rel=1e-4)


def test_equals_brute_force_on_real_queries_only() -> None:
    targets = random_targets(3, 0, 2)
    layers = [random_predictions(3, 6) for _ in range(3)]
    query_mask = torch.rand(3, 6) < 0.8
    query_mask[0, :4] = True
    matcher = HungarianMatcher()
    for layer, matches in zip(layers, matcher(layers, query_mask, targets), strict=True):
        cost = matcher.cost(layer, targets)
        for image in range(3):
            count = int(targets.mask[image].sum())
            real = query_mask[image].nonzero().flatten().tolist()
            best = min(
                sum(float(cost[image, query, slot]) for slot, query in enumerate(order))
                for order in itertools.permutations(real, count)
            )
            of_image = matches.batch_index == image
            queries = matches.query_index[of_image]
            slots = matches.target_index[of_image]
            assert sorted(slots.tolist()) == list(range(count))
            assert query_mask[image, queries].all()
            assert float(cost[image, queries, slots].sum()) == pytest.approx(best, rel=1e-4)


def test_more_objects_than_queries() -> None:
    targets = random_targets(350, 1)
    query_mask = torch.ones(2, 300, dtype=torch.bool)
    (matches,) = HungarianMatcher()([random_predictions(2, 300)], query_mask, targets)
    assert torch.bincount(matches.batch_index).tolist() == [300, 1]
    assert matches.query_index[:300].unique().numel() == 300
    assert matches.target_index[:300].unique().numel() == 300


@pytest.mark.parametrize("queries", [0, 4])
def test_nothing_to_match(queries: int) -> None:
    query_mask = torch.zeros(2, queries, dtype=torch.bool)
    (matches,) = HungarianMatcher()(
        [random_predictions(2, queries)], query_mask, random_targets(2, 1)
    )
    assert matches.query_index.dtype == torch.int64
    assert matches.query_index.shape == (0,)


@pytest.mark.parametrize(("name", "value"), [("boxes", "nan"), ("logits", "nan"), ("boxes", "inf")])
def test_non_finite_predictions_are_named(name: str, value: str) -> None:
    layers = [random_predictions(2, 5), random_predictions(2, 5)]
    getattr(layers[1], name)[1, 2] = float(value)
    query_mask = torch.ones(2, 5, dtype=torch.bool)
    targets = replace(random_targets(1, 2), image_ids=(41, 42))
    place = rf"not finite: pred_{name} of layer 1, image 1 .*id 42\), query 2"
    with pytest.raises(RuntimeError, match=rf"{place}.*ids: \[41, 42\]") as raised:
        HungarianMatcher()(layers, query_mask, targets)
    other = {"boxes": "pred_logits", "logits": "pred_boxes"}[name]
    assert other not in str(raised.value)


def test_both_are_named_where_both_are_not_finite() -> None:
    layer = random_predictions(1, 5)
    layer.boxes[0, 3, 1] = layer.logits[0, 3, :] = float("nan")
    with pytest.raises(RuntimeError, match=r"pred_logits .* query 3.*pred_boxes .* query 3"):
        HungarianMatcher()([layer], torch.ones(1, 5, dtype=torch.bool), random_targets(2))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_target_that_is_not_finite_is_named_and_no_prediction(value: str) -> None:
    targets = replace(random_targets(1, 3), image_ids=("a", "b"))
    targets.boxes[1, 2, 0] = float(value)
    with pytest.raises(RuntimeError, match=r"target 2 of image 1 .*id b\) is not finite") as raised:
        HungarianMatcher()([random_predictions(2, 5)], torch.ones(2, 5, dtype=torch.bool), targets)
    assert "pred_" not in str(raised.value)


@pytest.mark.parametrize("name", ["boxes", "logits"])
def test_finite_numbers_that_are_too_large_are_shown(name: str) -> None:
    layer = random_predictions(1, 5)
    getattr(layer, name)[0, 4] = 3e38
    with pytest.raises(RuntimeError, match=r"query 4 and target 0 .* all that it is made of is"):
        HungarianMatcher()([layer], torch.ones(1, 5, dtype=torch.bool), random_targets(2))


def test_masked_queries_may_be_non_finite() -> None:
    predictions = random_predictions(1, 5)
    predictions.logits[0, 3:] = float("-inf")
    predictions.boxes[0, 3:] = float("nan")
    query_mask = torch.tensor([[True, True, True, False, False]])
    (matches,) = HungarianMatcher()([predictions], query_mask, random_targets(4))
    assert sorted(matches.query_index.tolist()) == [0, 1, 2]

from __future__ import annotations

import pytest
import torch

from sparse_dset.models.decoder.denoising import make_denoising_queries
from sparse_dset.structures.boxes import cxcywh_to_xyxy
from sparse_dset.structures.outputs import DenoisingQueries
from sparse_dset.structures.targets import PaddedTargets, pad_targets

CLASSES = 5


def random_targets(*counts: int) -> PaddedTargets:
    """Objects well inside the image, so that noise is not clipped."""
    targets = [
        {
            "labels": torch.randint(CLASSES, (count,)),
            "boxes": torch.cat(
                [torch.rand(count, 2) * 0.2 + 0.4, torch.rand(count, 2) * 0.2 + 0.05], dim=1
            ),
            "image_id": image,
        }
        for image, count in enumerate(counts)
    ]
    return pad_targets(targets, CLASSES, "cpu")


def make(targets: PaddedTargets, **settings: float) -> DenoisingQueries:
    queries = make_denoising_queries(targets, 7, CLASSES, **settings)  # type: ignore[arg-type]
    assert queries is not None
    return queries


def own_boxes(targets: PaddedTargets, queries: DenoisingQueries) -> torch.Tensor:
    return targets.boxes.gather(1, queries.target_index[..., None].expand(-1, -1, 4))


@pytest.mark.parametrize(("counts", "groups"), [((3, 0, 1), 6), ((20,), 1), ((1,), 20), ((11,), 1)])
def test_groups_fill_the_budget(counts: tuple[int, ...], groups: int) -> None:
    queries = make(random_targets(*counts), num_denoising=20)
    assert queries.labels.shape[1] == 2 * max(counts) * groups
    assert queries.query_mask.sum(1).tolist() == [2 * groups * count for count in counts]
    assert queries.positive.sum(1).tolist() == [groups * count for count in counts]


@pytest.mark.parametrize("counts", [(0, 1, 700), (350, 2)])
def test_crowded_images_give_a_random_subset(counts: tuple[int, ...]) -> None:
    targets = random_targets(*counts)
    queries = make(targets, num_denoising=100)
    assert queries.labels.shape[1] == 200
    assert queries.attn_mask.shape == (207, 207)
    assert queries.query_mask.sum(1).tolist() == [2 * min(count, 100) for count in counts]
    crowded = counts.index(max(counts))
    positives = queries.target_index[crowded][queries.positive[crowded]]
    assert positives.unique().numel() == 100
    assert positives.max() >= 100
    assert queries.boxes_unact.isfinite().all()
    assert targets.mask.gather(1, queries.target_index)[queries.query_mask].all()


def test_every_group_holds_each_object_as_positive_and_as_negative() -> None:
    queries = make(random_targets(4, 2), num_denoising=12)
    for group in queries.target_index.view(2, 3, 2, 4).unbind(1):
        assert torch.equal(group[:, 0], group[:, 1])
        assert group[0, 0].sort().values.tolist() == [0, 1, 2, 3]
    assert queries.positive.view(2, 3, 2, 4)[0, :, 0].all()
    assert not queries.positive.view(2, 3, 2, 4)[:, :, 1].any()


def test_without_noise_the_objects_come_back() -> None:
    targets = random_targets(3, 1)
    queries = make(targets, label_noise_ratio=0.0, box_noise_scale=0.0)
    labels = targets.labels.gather(1, queries.target_index)
    assert torch.equal(queries.labels[queries.query_mask], labels[queries.query_mask])
    assert (queries.labels[~queries.query_mask] == CLASSES).all()
    real = queries.query_mask
    torch.testing.assert_close(
        queries.boxes_unact.sigmoid()[real], own_boxes(targets, queries)[real]
    )


def test_positives_stay_nearer_than_negatives() -> None:
    targets = random_targets(10, 10)
    queries = make(targets, num_denoising=200, box_noise_scale=0.4)
    own = own_boxes(targets, queries)
    moved = cxcywh_to_xyxy(queries.boxes_unact.sigmoid()) - cxcywh_to_xyxy(own)
    share = moved.abs() / (own[..., 2:].repeat(1, 1, 2) / 2)
    assert share[queries.positive].max() <= 0.4 + 1e-4
    assert share[~queries.positive].min() >= 0.4 - 1e-4
    assert share[~queries.positive].max() <= 0.8 + 1e-4


def test_half_of_the_ratio_gets_a_random_label() -> None:
    targets = random_targets(50)
    queries = make(targets, num_denoising=2000, label_noise_ratio=0.5)
    changed = queries.labels != targets.labels.gather(1, queries.target_index)
    assert float(changed.float().mean()) == pytest.approx(0.25 * (CLASSES - 1) / CLASSES, abs=0.03)
    assert queries.labels.max() < CLASSES


def test_corners_that_pass_each_other_still_span_a_box() -> None:
    queries = make(random_targets(20))
    sizes = queries.boxes_unact.sigmoid()[..., 2:]
    assert float((sizes > 1e-3).float().mean()) > 0.9


def test_strong_noise_gives_boxes_in_the_image() -> None:
    queries = make(random_targets(20), box_noise_scale=10.0)
    boxes = queries.boxes_unact.sigmoid()
    corners = cxcywh_to_xyxy(boxes)
    assert (corners >= -1e-4).all()
    assert (corners <= 1 + 1e-4).all()
    assert (boxes[..., 2:] > 0).all()


def test_attention_mask_equals_a_reference_that_loops() -> None:
    queries = make(random_targets(2, 1), num_denoising=6)
    width = queries.labels.shape[1]
    for row in range(width + 7):
        for column in range(width + 7):
            same_group = row < width and row // 4 == column // 4
            expected = column < width and not same_group
            assert bool(queries.attn_mask[row, column]) == expected


def test_generator_makes_it_repeatable() -> None:
    targets = random_targets(5, 3)
    first, second = (
        make_denoising_queries(targets, 7, CLASSES, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert first is not None
    assert second is not None
    assert torch.equal(first.boxes_unact, second.boxes_unact)
    assert torch.equal(first.labels, second.labels)


def test_none_without_objects_or_budget() -> None:
    assert make_denoising_queries(random_targets(0, 0), 7, CLASSES) is None
    assert make_denoising_queries(random_targets(2), 7, CLASSES, num_denoising=0) is None

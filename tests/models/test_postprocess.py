from __future__ import annotations

import pytest
import torch

from sparse_dset.models.postprocess import select_detections

LOGITS = torch.tensor([[[2.0, -1.0, 0.5], [-3.0, 1.0, -2.0]]])
BOXES = torch.tensor([[[0.9, 0.1, 0.2, 0.2], [0.5, 0.5, 1.0, 0.5]]])


def test_the_best_pairs_come_first_in_pixels():
    (found,) = select_detections(LOGITS, BOXES, [(100, 200)], max_detections=3)
    assert torch.allclose(found["scores"], torch.tensor([2.0, 1.0, 0.5]).sigmoid())
    assert found["labels"].tolist() == [0, 1, 2]
    wanted = [[160, 0, 200, 20], [0, 25, 200, 75], [160, 0, 200, 20]]
    assert torch.allclose(found["boxes"], torch.tensor(wanted, dtype=torch.float32), atol=1e-4)
    assert found["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("box", "size", "wanted"),
    [
        ([0.02, 0.5, 0.2, 0.2], (100, 200), [0, 40, 24, 60]),
        ([0.5, 0.99, 0.5, 0.2], (100, 200), [50, 89, 150, 100]),
        ([0.5, 0.5, 1.0, 1.0], (37, 53), [0, 0, 53, 37]),
        ([0.9, 0.1, 1.0, 1.0], (1, 3), [1.2, 0, 3, 0.6]),
        ([-0.5, 1.5, 0.2, 0.2], (100, 200), [0, 100, 0, 100]),  # wholly outside
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_boxes_end_where_their_image_ends(box, size, wanted, dtype):
    first, second = select_detections(
        LOGITS[:, :1].repeat(2, 1, 1),
        torch.tensor([[[0.5, 0.5, 3.0, 3.0]], [box]], dtype=dtype),
        [(10, 20), size],
    )
    assert first["boxes"][0].tolist() == [0, 0, 20, 10]
    found = second["boxes"][0]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float32), atol=0.5)
    assert (found >= 0).all()
    assert (found[:2] <= found[2:]).all()
    assert (found[2:] <= torch.tensor(size[::-1])).all()


def test_every_image_has_its_own_size():
    sizes = torch.tensor([[100, 200], [40, 10]])
    first, second = select_detections(LOGITS.repeat(2, 1, 1), BOXES.repeat(2, 1, 1), sizes)
    assert torch.allclose(second["boxes"], first["boxes"] * torch.tensor([0.05, 0.4, 0.05, 0.4]))


def test_there_are_at_most_queries_times_classes():
    (found,) = select_detections(LOGITS, BOXES, [(100, 200)])
    assert len(found["scores"]) == 6
    (none,) = select_detections(LOGITS[:, :0], BOXES[:, :0], [(100, 200)])
    assert none["scores"].shape == none["labels"].shape == (0,)
    assert none["boxes"].shape == (0, 4)


def test_masked_queries_are_never_selected():
    mask = torch.tensor([[False, True], [False, False]])
    first, second = select_detections(
        LOGITS.repeat(2, 1, 1), BOXES.repeat(2, 1, 1), [(100, 200)] * 2, query_mask=mask
    )
    assert first["labels"].tolist() == [1, 2, 0]
    assert len(second["scores"]) == 0


def test_half_precision_is_taken():
    (found,) = select_detections(LOGITS.bfloat16(), BOXES.bfloat16(), [(100, 200)])
    assert found["scores"].dtype == found["boxes"].dtype == torch.float32


def test_numbers_that_are_not_finite_are_not_hidden():
    logits = LOGITS.clone()
    logits[0, 0, 0] = float("nan")
    (found,) = select_detections(logits, BOXES, [(100, 200)], query_mask=torch.ones(1, 2) > 0)
    assert found["scores"].isnan().sum() == 1
    (found,) = select_detections(LOGITS, BOXES * torch.nan, [(100, 200)])
    assert found["boxes"].isnan().all()


@pytest.mark.parametrize("sizes", [[], [(100, 200)] * 2, [100, 200]])
def test_other_numbers_of_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="orig_sizes must be 1 pairs"):
        select_detections(LOGITS, BOXES, sizes)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        select_detections(LOGITS, BOXES, [(1, 1)], max_detections=0)

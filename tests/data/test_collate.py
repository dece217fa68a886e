from __future__ import annotations

import dataclasses

import pytest
import torch

from sparse_dset.data.coco import Target
from sparse_dset.data.collate import collate


def sample(height: int, width: int, image_id: int = 0) -> tuple[torch.Tensor, Target]:
    target = Target(
        labels=torch.zeros(1, dtype=torch.int64),
        boxes=torch.tensor([[0.9, 0.1, 0.1, 0.1]]),
        image_id=image_id,
        size=(height, width),
        orig_size=(height, width),
    )
    return torch.rand(3, height, width) + 0.1, target


@pytest.mark.parametrize(
    ("sizes", "padded"),
    [
        ([(333, 500)], (352, 512)),
        ([(320, 640), (640, 320)], (640, 640)),
        ([(64, 64), (512, 512)], (512, 512)),
        ([(1, 33)], (32, 64)),
    ],
)
def test_images_are_padded_to_the_right_and_below(sizes, padded):
    samples = [sample(*size) for size in sizes]
    batch = collate(samples)
    assert batch.padding_mask is not None
    assert batch.images.shape == (len(sizes), 3, *padded)
    assert batch.padding_mask.shape == (len(sizes), *padded)
    assert batch.padding_mask.dtype == torch.bool
    for (image, _), out, mask, (height, width) in zip(
        samples, batch.images, batch.padding_mask, sizes
    ):
        assert torch.equal(out[:, :height, :width], image)
        assert (out == 0).all(0).equal(mask)
        assert not mask[:height, :width].any()
        assert mask.sum() == padded[0] * padded[1] - height * width


def test_nothing_padded_means_no_mask():
    batch = collate([sample(64, 96, 1), sample(64, 96, 2)])
    assert batch.padding_mask is None
    assert batch.images.shape == (2, 3, 64, 96)
    assert [target["image_id"] for target in batch.targets] == [1, 2]
    assert len(batch) == 2


def test_boxes_do_not_move():
    batch = collate([sample(33, 50), sample(64, 64)])
    assert all(t["boxes"].equal(torch.tensor([[0.9, 0.1, 0.1, 0.1]])) for t in batch.targets)


def test_the_divisor_can_be_chosen():
    assert collate([sample(50, 70)], size_divisor=64).images.shape == (1, 3, 64, 128)
    assert collate([sample(50, 70)], size_divisor=1).padding_mask is None
    with pytest.raises(ValueError, match="at least 1"):
        collate([sample(50, 70)], size_divisor=0)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        collate([])


def test_a_batch_is_frozen_and_moves():
    batch = collate([sample(33, 50)])
    moved = batch.to("meta")
    assert moved.images.is_meta
    assert moved.padding_mask is not None
    assert moved.padding_mask.is_meta
    assert moved.targets[0]["boxes"].is_meta
    assert moved.targets[0]["size"] == (33, 50)
    assert not batch.targets[0]["boxes"].is_meta
    assert collate([sample(32, 32)]).to("cpu").padding_mask is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.images = moved.images  # type: ignore[misc]

from __future__ import annotations

import pytest
import torch

from sparse_dset.data.coco import CocoDetection
from sparse_dset.engine.randomness import SeededDataset, epoch_batches


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_images", [1, 5, 12, 23])
def test_batches_are_equal_over_processes_and_see_an_image_once(
    num_images: int, world_size: int
) -> None:
    batches = [
        epoch_batches(num_images, 2, seed=1, epoch=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    sizes = [[len(batch) for batch in own] for own in batches]
    assert all(size == sizes[0] for size in sizes)
    seen = [index for own in batches for batch in own for _, index in batch]
    if num_images >= 2 * world_size:
        assert len(set(seen)) == len(seen) == num_images // (2 * world_size) * 2 * world_size
    else:
        assert set(seen) == set(range(num_images))


def test_order_and_augmentation_depend_on_seed_epoch_and_index(data: CocoDetection) -> None:
    assert epoch_batches(9, 3, seed=0, epoch=1) != epoch_batches(9, 3, seed=0, epoch=2)
    assert epoch_batches(9, 3, seed=0, epoch=1) != epoch_batches(9, 3, seed=1, epoch=1)
    seeded = SeededDataset(data, seed=3)
    state = torch.get_rng_state()
    first = seeded[0, 1][0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(seeded[0, 1][0], first)
    brightness = {float(seeded[epoch, 1][0].sum()) for epoch in range(5)}
    assert len(brightness) > 1

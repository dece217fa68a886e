from __future__ import annotations

import pytest
import torch

from sparse_dset.structures.geometry import Geometry, pad_batch


def test_a_batch_is_padded_to_the_stride():
    images, geometry = pad_batch(torch.ones(2, 3, 33, 60), None)
    assert images.shape == (2, 3, 64, 64)
    assert images.sum() == 2 * 3 * 33 * 60
    assert geometry.image_sizes.tolist() == [[33, 60]] * 2
    assert (geometry.padded_size, geometry.padded) == ((64, 64), True)


def test_whole_images_are_not_padded():
    images = torch.rand(2, 3, 64, 96)
    for mask in (None, torch.zeros(2, 64, 96, dtype=torch.bool)):
        same, geometry = pad_batch(images, mask)
        assert torch.equal(same, images)
        assert not geometry.padded


def test_the_mask_gives_each_image_its_size():
    mask = torch.ones(3, 64, 96, dtype=torch.bool)
    mask[0, :40, :70] = False
    mask[1] = False
    images, geometry = pad_batch(torch.ones(3, 3, 64, 96), mask)
    assert geometry.image_sizes.tolist() == [[40, 70], [64, 96], [0, 0]]
    assert torch.equal(images[:, 0].bool(), ~mask)
    assert torch.equal(geometry.pixel_mask(), ~mask)
    assert geometry.padded


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7.0])
def test_padding_is_zero_whatever_it_held(value):
    images = torch.rand(2, 3, 32, 32)
    padding = torch.zeros(2, 32, 32, dtype=torch.bool)
    padding[1, :, 20:] = True
    filled = images.masked_fill(padding.unsqueeze(1), value)
    found, _ = pad_batch(filled, padding)
    torch.testing.assert_close(found, images.masked_fill(padding.unsqueeze(1), 0.0))


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (1, 3, 0, 32)])
def test_no_images_are_refused(shape):
    with pytest.raises(ValueError, match="at least one image of at least 1x1 pixels"):
        pad_batch(torch.zeros(shape), None)


def test_extents_and_cells():
    geometry = Geometry(torch.tensor([[40.0, 70.0], [0.0, 0.0]]), (64, 96), True)
    assert geometry.extents()[0].tolist() == [[5, 8.75], [2.5, 4.375], [1.25, 2.1875]]
    assert geometry.cells()[0].tolist() == [[5, 9], [3, 5], [2, 3]]
    # An image of nothing counts as one pixel, so that nothing is divided by zero.
    assert (geometry.extents()[1] > 0).all()
    assert geometry.cells()[1].tolist() == [[1, 1]] * 3
    valid = geometry.valid_masks()
    assert [tuple(v.shape) for v in valid] == [(2, 8, 12), (2, 4, 6), (2, 2, 3)]
    assert [v[0].sum().item() for v in valid] == [45, 15, 6]
    assert not any(v[1].any() for v in valid)


def test_valid_masks_nest():
    sizes = torch.randint(1, 97, (50, 2)).float()
    fine, middle, coarse = Geometry(sizes, (96, 96), True).valid_masks()
    for child, parent in ((fine, middle), (middle, coarse)):
        grown = parent.repeat_interleave(2, 1).repeat_interleave(2, 2)
        assert not (child & ~grown).any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 32, 64, dtype=torch.bool), "padding_mask must be bool"),
        (torch.zeros(1, 64, 64), "padding_mask must be bool"),
        (torch.eye(64, dtype=torch.bool)[None], "image 0 of the batch"),
    ],
)
def test_bad_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        pad_batch(torch.zeros(1, 3, 64, 64), mask)

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_dset.models.backbone.padding import padding_stays_zero


def _network():
    return (
        nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        .double()
        .eval()
    )


def test_a_padded_image_gives_inside_what_it_gives_alone():
    network, image = _network(), torch.randn(1, 3, 32, 48, dtype=torch.float64)
    padded = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    padded[:, :, :32, :48] = image
    pixels = torch.zeros(1, 64, 64, dtype=torch.bool)
    pixels[:, :32, :48] = True
    with padding_stays_zero(pixels):
        inside = network(padded)[:, :, :4, :6]
    torch.testing.assert_close(inside, network(image))
    outside_the_context = network(padded * pixels)[:, :, :4, :6]
    assert not torch.allclose(outside_the_context, network(image))


def test_without_padding_nothing_changes():
    network, image = _network(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with padding_stays_zero(torch.ones(1, 64, 64, dtype=torch.bool)):
        assert torch.equal(network(image), network(image))


def test_a_backbone_with_other_sizes_is_refused():
    pixels = torch.ones(1, 64, 64, dtype=torch.bool)
    odd = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with padding_stays_zero(pixels), pytest.raises(ValueError, match="cannot take padded batches"):
        odd(torch.randn(1, 3, 64, 64))

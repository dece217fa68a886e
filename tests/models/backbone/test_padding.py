from __future__ import annotations

import copy

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


class _SqueezeAndExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.reduce(x.mean((2, 3), keepdim=True)).sigmoid()


def _padded(image: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The image in a corner of noise, and where it is."""
    padded = torch.randn(len(image), 3, height, width, dtype=image.dtype)
    padded[:, :, : image.shape[2], : image.shape[3]] = image
    pixels = torch.zeros(len(image), height, width, dtype=torch.bool)
    pixels[:, : image.shape[2], : image.shape[3]] = True
    return padded, pixels


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_means_over_the_image_leave_padding_out(size):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), _SqueezeAndExcite()).double()
    image = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    padded, pixels = _padded(image, *size)
    with padding_stays_zero(pixels):
        inside = network(padded)[:, :, :16, :24]
    torch.testing.assert_close(inside, network(image))


def test_statistics_of_a_batch_leave_padding_out():
    network, image = _network().train(), torch.randn(2, 3, 32, 48, dtype=torch.float64)
    alone = copy.deepcopy(network)
    padded, pixels = _padded(image, 64, 64)
    with padding_stays_zero(pixels):
        inside = network(padded)[:, :, :4, :6]
    expected = alone(image)
    torch.testing.assert_close(inside, expected)
    inside.square().sum().backward()
    expected.square().sum().backward()
    for (name, ours), theirs in zip(network.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), theirs in zip(network.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparse_dset import native
from sparse_dset.ops import strips
from sparse_dset.ops.strips import ConvWeights, inverted_residual, worth_strips

pytestmark = pytest.mark.skipif(
    bool(native.unavailable_reason()), reason=native.unavailable_reason()
)


def _weights(hidden=24, size=3, channels=8, out_channels=12):
    return (
        ConvWeights(torch.randn(hidden, channels, 1, 1), torch.randn(hidden), "relu6"),
        ConvWeights(torch.randn(hidden, 1, size, size), torch.randn(hidden), "relu6"),
        ConvWeights(torch.randn(out_channels, hidden, 1, 1), torch.randn(out_channels), "none"),
    )


@pytest.mark.parametrize("strip_floats", [1, 24 * 14 * 3, 2**20])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", [(9, 14), (1, 5), (16, 8)])
def test_strips_are_the_whole(grid, stride, size, strip_floats, monkeypatch):
    monkeypatch.setattr(strips, "STRIP_FLOATS", strip_floats)
    expand, depthwise, project = _weights(size=size)
    x = torch.randn(2, 8, *grid)
    wide = F.relu6(F.conv2d(x, expand.weight, expand.bias))
    wide = F.relu6(
        F.conv2d(wide, depthwise.weight, depthwise.bias, stride, size // 2, groups=len(wide[0]))
    )
    expected = F.conv2d(wide, project.weight, project.bias)
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = inverted_residual(
            x.contiguous(memory_format=layout), expand, depthwise, project, stride
        )
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


def test_small_maps_and_other_types_go_without():
    expand, *_ = _weights()
    large = torch.zeros(1, 8, 400, 400)
    assert worth_strips(large, expand)
    assert not worth_strips(large[:, :, :40, :40], expand)
    assert not worth_strips(large.double(), expand)

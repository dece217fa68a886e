"""An inverted residual block in strips, so that its widest map never leaves the caches.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018: a 1x1 convolution
widens a map, a depthwise one goes over it, another 1x1 narrows it again. The wide map is several
times the size of the others, and at high resolution writing and reading it takes longer than all
the arithmetic.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary

from sparse_dset.ops.backends.choice import backend_for
from sparse_dset.ops.inference import pointwise_conv
from sparse_dset.structures.grid import map_to_rows, rows_to_map
from sparse_dset.structures.support import full_windows

STRIP_FLOATS = 2**20
"""About how much of the wide map is there at a time."""


@dataclass(frozen=True)
class ConvWeights:
    """A convolution with its normalisation folded in.

    Attributes:
        weight: ``[C_out, C_in / groups, k, k]``.
        bias: ``[C_out]``.
        activation: applied to the sum.
    """

    weight: Tensor
    bias: Tensor
    activation: str


def worth_strips(x: Tensor, expand: ConvWeights) -> bool:
    """Tells whether the wide map of ``x [B, C, H, W]`` should be made in strips, and can be."""
    wide = x.shape[0] * x.shape[2] * x.shape[3] * len(expand.weight)
    large = wide > 2 * STRIP_FLOATS and not has_torch_function_unary(x)
    return large and backend_for(x).makes_strips(x)


def inverted_residual(
    x: Tensor, expand: ConvWeights, depthwise: ConvWeights, project: ConvWeights, stride: int
) -> Tensor:
    """Widens, convolves each channel with "same" padding, and narrows; without a shortcut.

    Args:
        x: float32 ``[B, C_in, H, W]`` on a CPU.
        stride: of the depthwise convolution, 1 or 2.

    Returns:
        ``[B, C_out, ceil(H / stride), ceil(W / stride)]``.
    """
    batch, _, height, width = x.shape
    rows, size = map_to_rows(x), depthwise.weight.shape[-1]
    out_height, out_width = -(-height // stride), -(-width // stride)
    lines = max(1, STRIP_FLOATS // (width * stride * len(expand.weight)))
    out = rows.new_empty(batch * out_height * out_width, len(project.weight))
    for strip in _strips(batch, height, width, size, stride, lines):
        wide = pointwise_conv(
            rows[strip.seen], expand.weight.flatten(1), expand.bias, expand.activation
        )
        wide = torch.ops.sparse_dset.depthwise_conv2d_cpu.default(
            wide, depthwise.weight, depthwise.bias, strip.table, depthwise.activation
        )
        out[strip.made] = pointwise_conv(
            wide, project.weight.flatten(1), project.bias, project.activation
        )
    return rows_to_map(out, batch, out_height, out_width)


@dataclass(frozen=True)
class _Strip:
    """Some lines of an image's output, and the lines of its input that they see.

    Attributes:
        made: rows of the output.
        seen: rows of the input.
        table: int32 ``[N_made, k * k]``, which of the seen rows lies under each tap.
    """

    made: slice
    seen: slice
    table: Tensor


@functools.lru_cache(maxsize=16)
def _strips(
    batch: int, height: int, width: int, size: int, stride: int, lines: int
) -> tuple[_Strip, ...]:
    windows = full_windows(batch, height, width, size, stride, torch.device("cpu"))
    out_height, out_width = -(-height // stride), -(-width // stride)
    strips = []
    with torch.inference_mode(False):  # they outlive the forward pass
        for image, start in itertools.product(range(batch), range(0, out_height, lines)):
            end = min(start + lines, out_height)
            first = max(0, start * stride - size // 2)
            last = min(height, (end - 1) * stride + size // 2 + 1)
            made = slice(
                (image * out_height + start) * out_width, (image * out_height + end) * out_width
            )
            seen = slice((image * height + first) * width, (image * height + last) * width)
            table = windows[made]
            table = torch.where(table < 0, table, table - seen.start).contiguous()
            strips.append(_Strip(made, seen, table))
    return tuple(strips)

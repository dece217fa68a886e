"""Convolutions for inference, without gradients: the fastest of what is here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from sparse_dset import native
from sparse_dset.ops.activations import activate
from sparse_dset.ops.sparse_conv import chosen, sparse_conv2d
from sparse_dset.structures.grid import map_to_rows, rows_to_map
from sparse_dset.structures.support import Support, full_windows

_OPS = torch.ops.sparse_dset

SMALLEST_WINOGRAD = 32
"""Channels below which transforms cost more than they save."""


def dense_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    activation: str = "none",
    addend: Tensor | None = None,
) -> Tensor:
    """Convolves a map with "same" padding, adds another map and applies an activation.

    On a CPU, 3x3 convolutions of stride 1 are Winograd convolutions and 1x1 ones matrix products,
    and these and depthwise ones have all the rest inside; the others are PyTorch's.

    Args:
        x: ``[B, C_in, H, W]``, best in channels-last memory.
        weight: ``[C_out, C_in / groups, k, k]`` with odd k.
        addend: of the output's shape.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(
            dense_conv2d, (x,), x, weight, bias, stride=stride, activation=activation, addend=addend
        )
    size, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
    if runs_kernels(x):
        if groups == 1 and size == 1 and stride == 1:
            more = None if addend is None else map_to_rows(addend)
            out = pointwise_conv(map_to_rows(x), weight.flatten(1), bias, activation, more)
            return rows_to_map(out, x.shape[0], x.shape[2], x.shape[3])
        if groups == 1 and size == 3 and stride == 1 and min(weight.shape[:2]) >= SMALLEST_WINOGRAD:
            return _OPS.dense_conv2d_cpu.default(x, weight, bias, "auto", activation, addend)
        depthwise = groups == x.shape[1] == weight.shape[0]
        if depthwise and size <= 7 and stride in (1, 2) and addend is None:
            batch, _, height, width = x.shape
            table = full_windows(batch, height, width, size, stride, x.device)
            out = _OPS.depthwise_conv2d_cpu.default(map_to_rows(x), weight, bias, table, activation)
            return rows_to_map(out, batch, -(-height // stride), -(-width // stride))
    out = F.conv2d(x, weight, bias, stride, size // 2, groups=groups)
    return activate(out if addend is None else out.add_(addend), activation, inplace=True)


def rows_conv2d(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    support: Support,
    stride: int,
    target: Support,
    activation: str,
    addend: Tensor | None = None,
) -> Tensor:
    """Does what ``sparse_conv2d`` does, and adds other rows before the activation.

    There are no checks where the C++ kernels run. They stream weights through the caches, so that
    every line of Python between them is read from memory again.
    """
    if not runs_kernels(rows):
        out = sparse_conv2d(rows, weight, bias, support, stride, target)
        return activate(out if addend is None else out.add_(addend), activation, inplace=True)
    if stride == 1:
        table, row_map, algorithm = support.neighbors(), support.row_map(), chosen()[1]
    else:
        table, row_map, algorithm = target.strided_neighbors(support), None, "indirect"
    return _OPS.sparse_conv2d_cpu.default(
        rows, weight, bias, table, row_map, algorithm, activation, False, addend
    )


def pointwise_conv(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str = "none",
    addend: Tensor | None = None,
    addend_rows: Tensor | None = None,
) -> Tensor:
    """Applies a linear layer and an activation to rows.

    Args:
        rows: ``[N, C_in]``; they may be columns of wider rows.
        weight: ``[C_out, C_in]``.
        addend: ``[M, C_out]``, added before the activation.
        addend_rows: int64 ``[N]``, which row of ``addend`` each row gets; None: its own.
    """
    if runs_kernels(rows):
        return _OPS.pointwise_conv_cpu.default(rows, weight, bias, addend, addend_rows, activation)
    out = F.linear(rows, weight, bias)
    if addend is not None:
        out += addend if addend_rows is None else addend.index_select(0, addend_rows)
    return activate(out, activation, inplace=True)


def runs_kernels(x: Tensor) -> bool:
    """Tells whether the C++ kernels compute with this tensor."""
    backend = chosen()[0]
    return (
        (backend == "cpu" or (backend == "auto" and not native.unavailable_reason()))
        and x.dtype == torch.float32
        and x.is_cpu
        and not torch.is_autocast_enabled("cpu")
    )

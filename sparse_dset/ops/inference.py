"""Convolutions for inference, without gradients: the fastest of what is here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from sparse_dset import native
from sparse_dset.checks import check_gradient, check_inside, check_tensor
from sparse_dset.ops.activations import activate, check_activation
from sparse_dset.ops.sparse_conv import check_bias, chosen, sparse_conv2d, target_of
from sparse_dset.structures.grid import map_to_rows, rows_to_map
from sparse_dset.structures.support import Support, full_windows

LARGEST_STRIDE = 64

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
        weight: ``[C_out, C_in / groups, k, k]`` with odd k, of the type of ``x``.
        stride: 1 to 64; the output has ``ceil(H / stride)`` rows of cells.
        addend: of the output's shape.

    Raises:
        ValueError: an argument that does not fit; the message names it.
        RuntimeError: the same, where a C++ kernel found it.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(
            dense_conv2d, (x,), x, weight, bias, stride=stride, activation=activation, addend=addend
        )
    # The kernels check the rest themselves, see ``rows_conv2d``.
    maps = x.dim() == weight.dim() == 4 and x.numel() and weight.numel() and stride > 0
    if maps and runs_kernels(x) and weight.layout == torch.strided:
        batch, channels, height, width = x.shape
        size, groups = weight.shape[-1], channels // weight.shape[1]
        if addend is not None:
            _check_addend(
                addend, (batch, weight.shape[0], -(-height // stride), -(-width // stride))
            )
        if groups == 1 and size == 1 and stride == 1:
            more = None if addend is None else map_to_rows(addend)
            out = pointwise_conv(map_to_rows(x), weight.flatten(1), bias, activation, more)
            return rows_to_map(out, batch, height, width)
        if groups == 1 and size == 3 and stride == 1 and min(weight.shape[:2]) >= SMALLEST_WINOGRAD:
            return _OPS.dense_conv2d_cpu.default(x, weight, bias, "auto", activation, addend)
        depthwise = groups == channels == weight.shape[0]
        if depthwise and size <= 7 and stride in (1, 2) and addend is None:
            table = full_windows(batch, height, width, size, stride, x.device)
            out = _OPS.depthwise_conv2d_cpu.default(map_to_rows(x), weight, bias, table, activation)
            return rows_to_map(out, batch, -(-height // stride), -(-width // stride))
    _check_shapes(x, weight, stride)
    _check_types("x", x, weight, bias)
    groups = x.shape[1] // weight.shape[1]
    out = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)
    return _finish(out, addend, activation)


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

    Where the C++ kernels run, the checks are theirs. They stream weights through the caches, so
    that every line of Python between them is read from memory again.
    """
    target = target_of(support, stride, target)
    if not runs_kernels(rows):
        out = sparse_conv2d(rows, weight, bias, support, stride, target)
        return _finish(out, addend, activation)
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
        weight: ``[C_out, C_in]``, of the type of ``rows``.
        addend: ``[M, C_out]``, added before the activation.
        addend_rows: int64 ``[N]``, which row of ``addend`` each row gets; None: its own.

    Raises:
        ValueError: an argument that does not fit; the message names it.
        RuntimeError: the same, where a C++ kernel found it.
    """
    if runs_kernels(rows):
        return _OPS.pointwise_conv_cpu.default(rows, weight, bias, addend, addend_rows, activation)
    check_tensor("rows", rows, "[N, C_in]")
    check_tensor("weight", weight, "[C_out, C_in]", "float", rows.device)
    if weight.shape[1] != rows.shape[1]:
        raise ValueError(f"weight must be [C_out, {rows.shape[1]}], got {tuple(weight.shape)}")
    _check_types("rows", rows, weight, bias)
    if addend is not None and addend_rows is not None:
        check_tensor("addend", addend, "[M, C_out]", "float", rows.device)
        check_inside("addend_rows", addend_rows, len(rows), len(addend), rows.device)
        addend = addend.index_select(0, addend_rows)
    return _finish(F.linear(rows, weight, bias), addend, activation)


def runs_kernels(x: Tensor) -> bool:
    """Tells whether the C++ kernels compute with this tensor."""
    backend = chosen()[0]
    return (
        (backend == "cpu" or (backend == "auto" and not native.unavailable_reason()))
        and x.dtype == torch.float32
        and x.is_cpu
        and x.layout == torch.strided
        and not torch.is_autocast_enabled("cpu")
    )


def _check_shapes(x: Tensor, weight: Tensor, stride: int) -> None:
    check_tensor("x", x, "[B, C_in, H, W]")
    check_tensor("weight", weight, "[C_out, C_in / groups, k, k]", "float", x.device)
    _, channels, height, width = x.shape
    out_channels, per_group, size = weight.shape[:3]
    if height < 1 or width < 1 or not 1 <= stride <= LARGEST_STRIDE:
        raise ValueError(
            f"x must have cells and stride be in 1..{LARGEST_STRIDE}, got {tuple(x.shape)} and "
            f"{stride}"
        )
    if per_group < 1 or channels < 1 or channels % per_group or size != weight.shape[3]:
        raise ValueError(
            f"weight must be [C_out, C_in / groups, k, k] for C_in = {channels}, got "
            f"{tuple(weight.shape)}"
        )
    if size % 2 == 0 or out_channels % (channels // per_group):
        raise ValueError(
            f"weight must have an odd k and as many filters for each of its "
            f"{channels // per_group} groups, got {tuple(weight.shape)}"
        )


def _check_types(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Checks what PyTorch's operators want of a convolution's arguments."""
    check_bias(bias, weight)
    check_gradient(x, weight, bias)
    types = {tensor.dtype for tensor in (x, weight, bias) if tensor is not None}
    if len(types) > 1 and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f"{name}, weight and bias must have one type, got {', '.join(map(str, types))}"
        )


def _finish(out: Tensor, addend: Tensor | None, activation: str) -> Tensor:
    """Adds and activates in place."""
    check_activation(activation)
    if addend is not None:
        _check_addend(addend, tuple(out.shape))
        check_tensor("addend", addend, str(list(out.shape)), "float", out.device)
        out = out.add_(addend)
    return activate(out, activation, inplace=True)


def _check_addend(addend: Tensor, shape: tuple[int, ...]) -> None:
    if addend.shape != shape or addend.layout != torch.strided:
        raise ValueError(
            f"addend must be {shape} in dense memory like the output, got {tuple(addend.shape)} "
            f"{addend.layout}"
        )

"""Convolutions for inference, without gradients: the fastest of what is here."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from sparse_dset.ops.backends.choice import AUTO, backend_for, chosen_algorithm
from sparse_dset.ops.shapes import target_of
from sparse_dset.structures.support import Support


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
    return backend_for(x).dense_conv2d(x, weight, bias, stride, activation, addend)


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

    Where kernels of a backend run, the checks are theirs.
    """
    target = target_of(support, stride, target)
    algorithm = chosen_algorithm() if stride == 1 else AUTO
    return backend_for(rows).rows_conv2d(
        rows, weight, bias, support, stride, target, algorithm, activation, addend
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
    return backend_for(rows).pointwise_conv(rows, weight, bias, activation, addend, addend_rows)

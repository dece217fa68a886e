"""Reductions over rows that belong to segments of different sizes: images, patches, experts.

Half types are summed in float32: a float16 sum overflows above 65,504, and a bfloat16 one stands
still as soon as its terms are below a 256th of it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from sparse_dset.checks import check_gradient, check_inside

try:
    import torch_scatter
except ImportError:  # optional: PyTorch's own reductions give the same result
    torch_scatter = None
except Exception as error:  # a wheel of another PyTorch fails in as many ways as it has libraries
    warnings.warn(
        f"torch_scatter is here but does not load, PyTorch's own reductions run instead: {error}; "
        "build it for this PyTorch with pip install --no-build-isolation torch-scatter",
        stacklevel=2,
    )
    torch_scatter = None


_LARGEST_SIZE = 2**31 - 1


def widened(values: Tensor) -> Tensor:
    """Converts half types to float32, in which they are summed; other types pass as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums the rows of each segment.

    Args:
        values: ``[N, ...]``.
        index: each row's segment, int64 ``[N]`` in 0..size-1, in any order.
        size: the number of segments.

    Returns:
        ``[size, ...]`` of the dtype of ``values``; a segment without rows is zero.
    """
    _check(values, index, size)
    return _sum(widened(values), index, size).to(values.dtype)


def segment_mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Averages the rows of each segment; see ``segment_sum``. Integers give float32."""
    _check(values, index, size)
    counts = _sum(torch.ones_like(index), index, size).clamp(min=1)
    means = _sum(widened(values), index, size) / counts.view(-1, *[1] * (values.dim() - 1))
    return means.to(values.dtype) if values.is_floating_point() else means


def _sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    if torch_scatter is not None:
        return torch_scatter.scatter_sum(values, index, dim=0, dim_size=size)
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gathers rows, one of which may be gathered often; its gradients are summed up in float32.

    Args:
        values: ``[N, ...]``.
        index: int64 ``[M]`` in 0..N-1.
    """
    return widened(values).index_select(0, index).to(values.dtype)


def _check(values: Tensor, index: Tensor, size: int) -> None:
    if not 0 <= size <= _LARGEST_SIZE:
        raise ValueError(f"size must be in 0..{_LARGEST_SIZE}, got {size}")
    if not values.dim() or values.layout != torch.strided or values.is_complex():
        raise ValueError(
            f"values must be a dense real tensor [N, ...], got {values.dtype} {tuple(values.shape)}"
        )
    check_gradient(values, index)
    # torch_scatter does not look.
    check_inside("index", index, len(values), size, values.device)

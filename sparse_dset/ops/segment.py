"""Reductions over rows that belong to segments of different sizes: images, patches, experts."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

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


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums the rows of each segment.

    Args:
        values: ``[N, ...]``.
        index: each row's segment, int64 ``[N]`` in 0..size-1, in any order.
        size: the number of segments.

    Returns:
        ``[size, ...]``; a segment without rows is zero.
    """
    _check(values, index)
    if torch_scatter is not None:
        return torch_scatter.scatter_sum(values, index, dim=0, dim_size=size)
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


def segment_mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Averages the rows of each segment; see ``segment_sum``."""
    counts = torch.bincount(index, minlength=size).clamp(min=1)
    return segment_sum(values, index, size) / counts.view(-1, *[1] * (values.dim() - 1))


def _check(values: Tensor, index: Tensor) -> None:
    if index.dtype != torch.int64 or index.shape != values.shape[:1]:
        raise ValueError(
            f"index must be int64 {tuple(values.shape[:1])}, one segment per row of values, "
            f"got {index.dtype} {tuple(index.shape)}"
        )

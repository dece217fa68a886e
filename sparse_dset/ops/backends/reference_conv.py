"""Convolutions over kept sites in plain PyTorch: what every faster backend is compared with.

The rows under each window are laid side by side and multiplied once (Chellapilla et al., "High
Performance Convolutional Neural Networks for Document Processing", 2006).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_dset.checks import check_table, savable
from sparse_dset.ops.segment import widened
from sparse_dset.ops.windows import tap_rows, window_rows


@torch.library.custom_op("sparse_dset::sparse_conv2d", mutates_args=())
def sparse_conv2d_reference(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Convolves the rows that a table names; differentiable in features and weight.

    It is an operator of its own so that FLOP counters see the pairs, not the zero rows.

    Args:
        features: ``[N, C_in]``.
        weight: ``[C_out, C_in, 3, 3]``, of the dtype of ``features``.
        table: int32 ``[N_out, 9]``, the row of ``features`` under each tap, -1 = no site.

    Returns:
        ``[N_out, C_out]``.
    """
    check_table(table, features, weight)
    if weight.shape[1:] != (features.shape[1], 3, 3):
        raise ValueError(
            f"weight must be [C_out, {features.shape[1]}, 3, 3], got {tuple(weight.shape)}"
        )
    return _windows(features, table) @ weight.permute(2, 3, 1, 0).flatten(0, 2)


@sparse_conv2d_reference.register_fake
def _(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    check_table(table, features, weight)
    return features.new_empty(table.shape[0], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*savable(*inputs))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    features, weight, table = ctx.saved_tensors
    grad_features = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_windows = grad @ weight.permute(0, 2, 3, 1).flatten(1)
        grad_windows = widened(grad_windows).view(-1, features.shape[1])
        grad_padded = grad_windows.new_zeros(features.shape[0] + 1, features.shape[1])
        grad_padded = grad_padded.index_add(0, tap_rows(features, table), grad_windows)
        grad_features = grad_padded[:-1].to(features.dtype)
    if ctx.needs_input_grad[1]:
        # The windows are gathered again: nine times the features would be a lot to keep.
        products = grad.t() @ _windows(features, table)
        grad_weight = products.view(weight.shape[0], 3, 3, weight.shape[1]).permute(0, 3, 1, 2)
    return grad_features, grad_weight, None


sparse_conv2d_reference.register_autograd(_backward, setup_context=_save)


def _windows(features: Tensor, table: Tensor) -> Tensor:
    """Lays the rows of each window side by side: ``[N_out, 9 * C_in]``."""
    return window_rows(features, table).view(table.shape[0], 9 * features.shape[1])


@torch.library.custom_op("sparse_dset::depthwise_conv2d", mutates_args=())
def depthwise_conv2d_reference(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Convolves the rows that a table names; differentiable in features and weight.

    Args:
        features: ``[N, C]``.
        weight: ``[C, 1, k, k]``, of the dtype of ``features``.
        table: int32 ``[N_out, k * k]``, the row of ``features`` under each tap, -1 = no site.

    Returns:
        ``[N_out, C]``.
    """
    check_table(table, features, weight)
    if weight.shape[:2] != (features.shape[1], 1):
        raise ValueError(
            f"weight must be [{features.shape[1]}, 1, k, k], got {tuple(weight.shape)}"
        )
    dtype = features.dtype
    features, weight = widened(features), widened(weight)
    out = features.new_zeros(table.shape[0], features.shape[1])
    for tap, kernel in zip(table.unbind(1), weight.flatten(1).unbind(1), strict=True):
        there = (tap >= 0).nonzero().flatten()
        out.index_add_(0, there, features.index_select(0, tap[there]) * kernel)
    return out.to(dtype)


@depthwise_conv2d_reference.register_fake
def _(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    check_table(table, features, weight)
    return features.new_empty(table.shape[0], features.shape[1])


def _save_depthwise(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*savable(*inputs))


def _depthwise_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    features, weight, table = ctx.saved_tensors
    dtype = features.dtype
    features, weight, grad = widened(features), widened(weight), widened(grad)
    grad_features, grad_weight = torch.zeros_like(features), torch.zeros_like(weight).flatten(1)
    for i, tap in enumerate(table.unbind(1)):
        there = (tap >= 0).nonzero().flatten()
        rows, grads = tap[there], grad.index_select(0, there)
        grad_features.index_add_(0, rows, grads * weight.flatten(1)[:, i])
        grad_weight[:, i] = (features.index_select(0, rows) * grads).sum(0)
    return grad_features.to(dtype), grad_weight.view_as(weight).to(dtype), None


depthwise_conv2d_reference.register_autograd(_depthwise_backward, setup_context=_save_depthwise)

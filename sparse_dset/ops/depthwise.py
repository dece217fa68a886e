"""Depthwise convolution over kept sites: one kernel per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_dset.checks import check_table, check_tensor, needs_gradient, savable
from sparse_dset.ops.activations import activate, check_activation
from sparse_dset.ops.segment import widened
from sparse_dset.ops.sparse_conv import (
    check_bias,
    check_features,
    resolve_backend,
    target_of,
)
from sparse_dset.structures.support import Support


def depthwise_conv2d(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    support: Support,
    stride: int = 1,
    out_support: Support | None = None,
    backend: str = "auto",
    activation: str = "none",
) -> Tensor:
    """Convolves each channel of kept sites with a kernel of its own and "same" padding.

    As in ``sparse_conv2d``, sites that are not kept read zero, and stride 2 is evaluated at the
    sites of ``out_support``.

    Args:
        features: ``[N, C]``, rows in the order of ``support.indices``.
        weight: ``[C, 1, k, k]`` with odd k, at most 7, as ``nn.Conv2d(groups=C)`` holds it.
        bias: ``[C]`` or None.
        backend: one of ``BACKENDS``; "spconv" has no depthwise convolution: it runs "reference".
        activation: applied to the sum, one of ``activations.ACTIVATIONS``.

    Returns:
        ``[N_out, C]`` in the wider dtype of features and weight.

    Raises:
        ValueError: an argument that does not fit; the message names it.
        ImportError: a backend whose package is missing.
    """
    check_activation(activation)
    target = target_of(support, stride, out_support)
    check_features(features, support)
    check_tensor("weight", weight, "[C, 1, k, k]", "float", features.device)
    size = weight.shape[-1]
    if weight.shape != (features.shape[1], 1, size, size) or size % 2 == 0 or size > 7:
        raise ValueError(
            f"weight must be [{features.shape[1]}, 1, k, k] with k = 1, 3, 5 or 7, got "
            f"{tuple(weight.shape)}"
        )
    check_bias(bias, weight)
    dtype = torch.promote_types(features.dtype, weight.dtype)
    table = support.neighbors(size) if stride == 1 else target.strided_neighbors(support, size)
    if resolve_backend(backend, features.device, dtype) == "cpu":
        # A fused activation hides what its gradient needs.
        fused = "none" if needs_gradient(features, weight, bias) else activation
        wide = None if bias is None else bias.float()
        out = torch.ops.sparse_dset.depthwise_conv2d_cpu.default(
            features.float(), weight.float(), wide, table, fused
        ).to(dtype)
        return out if fused == activation else activate(out, activation)
    out = depthwise_conv2d_reference(features.to(dtype), weight.to(dtype), table)
    return activate(out if bias is None else out + bias.to(dtype), activation)


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


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*savable(*inputs))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
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


depthwise_conv2d_reference.register_autograd(_backward, setup_context=_save)

"""Depthwise convolution over kept sites: one kernel per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dset.checks import check_tensor
from sparse_dset.ops.activations import check_activation
from sparse_dset.ops.backends.choice import AUTO, resolve_backend
from sparse_dset.ops.backends.reference import Backend
from sparse_dset.ops.shapes import check_bias, check_features, target_of
from sparse_dset.structures.support import Support


def depthwise_conv2d(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    support: Support,
    stride: int = 1,
    out_support: Support | None = None,
    backend: str | Backend = AUTO,
    activation: str = "none",
) -> Tensor:
    """Convolves each channel of kept sites with a kernel of its own and "same" padding.

    As in ``sparse_conv2d``, sites that are not kept read zero, and stride 2 is evaluated at the
    sites of ``out_support``.

    Args:
        features: ``[N, C]``, rows in the order of ``support.indices``.
        weight: ``[C, 1, k, k]`` with odd k, at most 7, as ``nn.Conv2d(groups=C)`` holds it.
        bias: ``[C]`` or None.
        backend: one of ``backends.NAMES``, or an object.
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
    chosen = resolve_backend(backend, features.device, dtype)
    return chosen.depthwise_conv2d(features, weight, bias, table, activation)

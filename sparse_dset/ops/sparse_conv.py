"""The 3x3 convolution over kept sites."""

from __future__ import annotations

from torch import Tensor

from sparse_dset.ops.activations import check_activation
from sparse_dset.ops.backends.choice import (
    AUTO,
    check_algorithm,
    chosen_algorithm,
    resolve_backend,
)
from sparse_dset.ops.backends.reference import Backend
from sparse_dset.ops.shapes import check_sparse_conv, in_one_type, target_of
from sparse_dset.structures.support import Support


def sparse_conv2d(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    support: Support,
    stride: int = 1,
    out_support: Support | None = None,
    algorithm: str = AUTO,
    backend: str | Backend = AUTO,
    activation: str = "none",
) -> Tensor:
    """Convolves kept sites with a 3x3 kernel and padding 1; sites that are not kept read zero.

    Stride 1 is the submanifold convolution of Graham et al., "3D Semantic Segmentation with
    Submanifold Sparse Convolutional Networks", 2018. Stride 2 is evaluated at the sites of
    ``out_support`` alone, so that it never dilates.

    Args:
        features: ``[N, C_in]``, rows in the order of ``support.indices``.
        weight: ``[C_out, C_in, 3, 3]``, as ``nn.Conv2d`` holds it.
        bias: ``[C_out]`` or None.
        support: where the rows lie.
        stride: 1 or 2.
        out_support: for stride 2 the sites of the coarser level; for stride 1 None or ``support``.
        algorithm: one of the backend's ``algorithms``.
        backend: one of ``backends.NAMES``, or an object.
        activation: applied to the sum, one of ``activations.ACTIVATIONS``.

    Returns:
        ``[N_out, C_out]``, in autocast's dtype under autocast, else in the wider dtype of features
        and weight.

    Raises:
        ValueError: an argument that does not fit; the message names it.
        ImportError: a backend whose package is missing.
    """
    check_activation(activation)
    target = target_of(support, stride, out_support)
    check_sparse_conv(features, weight, bias, support)
    features, weight, bias = in_one_type(features, weight, bias)
    chosen = resolve_backend(backend, features.device, features.dtype)
    check_algorithm(algorithm, chosen, stride)
    if algorithm == AUTO and stride == 1:
        algorithm = chosen_algorithm()
    return chosen.sparse_conv2d(
        features, weight, bias, support, stride, target, algorithm, activation
    )

"""Checks of shapes that several operators share."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dset.checks import check_tensor
from sparse_dset.structures.support import Support

LARGEST_STRIDE = 64


def target_of(support: Support, stride: int, out_support: Support | None) -> Support:
    """Returns where a convolution's output lies.

    Raises:
        ValueError: the stride is not 1 or 2, or the output's support does not go with it.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")
    if stride == 2:
        if out_support is None:
            raise ValueError("out_support must name the sites to evaluate when stride is 2")
        return out_support
    if out_support is not None and not out_support.same_sites(support):
        raise ValueError(
            f"out_support must be None or the support itself when stride is 1, got {out_support} "
            f"for {support}"
        )
    return support


def check_features(features: Tensor, support: Support) -> None:
    """Raises a ValueError if these are not the rows of a support."""
    check_tensor("features", features, "[N, C_in]", "float", support.device)
    if len(features) != support.num_sites or not features.shape[1]:
        raise ValueError(
            f"features must be [{support.num_sites}, C_in] for {support}, "
            f"got {tuple(features.shape)}"
        )


def check_bias(bias: Tensor | None, weight: Tensor) -> None:
    """Raises a ValueError if a bias does not go with a weight ``[C_out, ...]``."""
    if bias is not None:
        check_tensor("bias", bias, "[C_out]", "float", weight.device)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")


def check_addend(addend: Tensor, shape: tuple[int, ...]) -> None:
    """Raises a ValueError if a tensor cannot be added to an output of this shape."""
    if addend.shape != shape or addend.layout != torch.strided:
        raise ValueError(
            f"addend must be {shape} in dense memory like the output, got {tuple(addend.shape)} "
            f"{addend.layout}"
        )


def check_dense_shapes(x: Tensor, weight: Tensor, stride: int) -> None:
    """Raises a ValueError if a dense convolution's arguments do not fit."""
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


def check_sparse_conv(
    features: Tensor, weight: Tensor, bias: Tensor | None, support: Support
) -> None:
    """Raises a ValueError if the tensors of a 3x3 convolution over kept sites do not fit."""
    check_features(features, support)
    check_tensor("weight", weight, "[C_out, C_in, 3, 3]", "float", features.device)
    if weight.shape[1:] != (features.shape[1], 3, 3):
        raise ValueError(
            f"weight must be [C_out, {features.shape[1]}, 3, 3], got {tuple(weight.shape)}"
            + "; a 1x1 convolution is a linear layer" * (weight.shape[2:] == (1, 1))
        )
    check_bias(bias, weight)


def in_one_type(
    features: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Converts what a convolution reads to autocast's type, or to the wider one of its tensors."""
    dtype = compute_dtype(features, weight)
    if not features.dtype == weight.dtype == dtype:
        features, weight = features.to(dtype), weight.to(dtype)
    if bias is not None and bias.dtype != dtype:
        bias = bias.to(dtype)
    return features, weight, bias


def compute_dtype(features: Tensor, weight: Tensor) -> torch.dtype:
    """Returns the type that a convolution computes in."""
    dtype = torch.promote_types(features.dtype, weight.dtype)
    device = features.device.type
    # As PyTorch's own operators under autocast, float64 is left alone.
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype

"""The C++ operators of ``csrc/cpu``: shapes for tracing, and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparse_dset import native
from sparse_dset.checks import check_number, check_tensor, savable
from sparse_dset.structures.tables import check_window


def _check_kernel(weight: Tensor) -> None:
    if weight.dim() < 2:
        raise ValueError(f"weight must be [C_out, C_in, ...], got {tuple(weight.shape)}")


def _sparse_conv2d_fake(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    row_map: Tensor | None,
    algorithm: str,
    activation: str,
    transposed: bool = False,
    addend: Tensor | None = None,
) -> Tensor:
    check_tensor("table", table, "[N, taps]", "integer")
    _check_kernel(weight)
    return features.new_empty(table.shape[0], weight.shape[1 if transposed else 0])


def _weight_gradient_fake(
    features: Tensor, grad: Tensor, table: Tensor, row_map: Tensor | None, algorithm: str
) -> Tensor:
    check_tensor("features", features, "[N, C_in]")
    check_tensor("grad", grad, "[N_out, C_out]")
    check_tensor("table", table, "[N_out, taps]", "integer")
    return features.new_empty(grad.shape[1], features.shape[1], table.shape[1])


def _depthwise_fake(
    features: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, activation: str
) -> Tensor:
    check_tensor("features", features, "[N, C]")
    check_tensor("table", table, "[N_out, taps]", "integer")
    return features.new_empty(len(table), features.shape[1])


def _depthwise_gradient_fake(features: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    check_tensor("features", features, "[N, C]")
    check_tensor("table", table, "[N_out, taps]", "integer")
    return features.new_empty(features.shape[1], table.shape[1])


def _pointwise_fake(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    addend_rows: Tensor | None,
    activation: str,
) -> Tensor:
    check_tensor("features", features, "[N, C_in]")
    _check_kernel(weight)
    return features.new_empty(features.shape[0], weight.shape[0])


def _dense_conv2d_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    algorithm: str,
    activation: str,
    addend: Tensor | None = None,
) -> Tensor:
    check_tensor("x", x, "[B, C_in, H, W]")
    _check_kernel(weight)
    batch, _, height, width = x.shape
    out = x.new_empty(batch, weight.shape[0], height, width)
    return out.contiguous(memory_format=torch.channels_last)


def _inverse_table_fake(table: Tensor, num_rows: int) -> Tensor:
    check_tensor("table", table, "[N, taps]", "integer")
    if isinstance(num_rows, int):  # in a graph of any size it is a symbol
        check_number("num_rows", num_rows, at_least=0, at_most=2**31 - 1, whole=True)
    return table.new_empty(num_rows, table.shape[1])


def _refuse_fused(activation: str) -> None:
    if activation != "none":
        raise RuntimeError(
            f"a fused {activation} has no gradient: apply it after the convolution, or do not ask "
            "for gradients"
        )


def _sparse_conv2d_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, weight, bias, table, row_map, ctx.algorithm, activation, transposed, addend = inputs
    if transposed:
        raise RuntimeError("the gradient of a convolution's gradient is not implemented")
    _refuse_fused(activation)
    if addend is not None:
        raise RuntimeError("a fused addend has no gradient: add it after the convolution")
    ctx.save_for_backward(*savable(features, weight, table, row_map))
    ctx.has_bias = bias is not None


def _sparse_conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, weight, table, row_map = ctx.saved_tensors
    grad = grad.contiguous()
    grad_features = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        if row_map is None:
            table_in = torch.ops.sparse_dset.inverse_table(table, features.shape[0])
        else:
            table_in = table
        grad_features = torch.ops.sparse_dset.sparse_conv2d_cpu(
            grad, weight, None, table_in, row_map, ctx.algorithm, "none", transposed=True
        )
    if ctx.needs_input_grad[1]:
        grad_weight = torch.ops.sparse_dset.sparse_conv2d_cpu_weight_gradient(
            features, grad, table, row_map, ctx.algorithm
        )
        grad_weight = grad_weight.view_as(weight)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = grad.sum(0)
    return grad_features, grad_weight, grad_bias, None, None, None, None, None, None


def _depthwise_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, weight, bias, table, activation = inputs
    _refuse_fused(activation)
    ctx.save_for_backward(*savable(features, weight, table))
    ctx.has_bias = bias is not None


def _depthwise_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ops = torch.ops.sparse_dset
    features, weight, table = ctx.saved_tensors
    grad = grad.contiguous()
    grad_features = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        table_in = ops.inverse_table(table, features.shape[0])
        grad_features = ops.depthwise_conv2d_cpu(grad, weight, None, table_in, "none")
    if ctx.needs_input_grad[1]:
        grad_weight = ops.depthwise_conv2d_cpu_weight_gradient(features, grad, table)
        grad_weight = grad_weight.view_as(weight)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = grad.sum(0)
    return grad_features, grad_weight, grad_bias, None, None


def _deform_attn_fake(
    rows: Tensor,
    row_maps: Sequence[Tensor],
    level_sizes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    extents: Tensor,
    background: Tensor,
    whole_rows: bool,
) -> tuple[Tensor, Tensor]:
    check_tensor("rows", rows, "[M, channels]")
    check_tensor("locations", locations, "[B, Q, heads, L, P, 2]")
    batch, queries, heads = locations.shape[:3]
    if not heads or rows.shape[1] % heads:
        raise ValueError(f"rows must have a multiple of {heads} columns, got {tuple(rows.shape)}")
    width = rows.shape[1] if whole_rows else rows.shape[1] // heads
    return rows.new_empty(batch, queries, heads, width), rows.new_empty(batch, queries, heads)


def _deform_attn_backward_fake(
    grad: Tensor,
    rows: Tensor,
    row_maps: Sequence[Tensor],
    level_sizes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    extents: Tensor,
    background: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (rows, locations, weights, background))


def _deform_attn_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    rows, row_maps, ctx.level_sizes, locations, weights, extents, background, whole_rows = inputs
    if whole_rows:
        raise RuntimeError("sampling whole rows has no gradient: project them first")
    ctx.save_for_backward(*savable(rows, locations, weights, extents, background, *row_maps))
    ctx.mark_non_differentiable(output[1])


def _deform_attn_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    rows, locations, weights, extents, background, *row_maps = ctx.saved_tensors
    grads = torch.ops.sparse_dset.deform_attn_cpu_backward(
        grad.contiguous(), rows, row_maps, ctx.level_sizes, locations, weights, extents, background
    )
    grad_rows, grad_locations, grad_weights, grad_background = grads
    no_maps = [None] * len(row_maps)
    return grad_rows, no_maps, None, grad_locations, grad_weights, None, grad_background, None


def _sites_of_mask_fake(mask: Tensor) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    row_map = mask.new_empty(mask.shape, dtype=torch.int32)
    return row_map.new_empty(count, 3), row_map


def _window_table_fake(row_map: Tensor, indices: Tensor, size: int, stride: int) -> Tensor:
    check_window(size)
    return row_map.new_empty(len(indices), size * size)


def _parent_rows_fake(indices: Tensor, coarser_row_map: Tensor) -> Tensor:
    return indices.new_empty(len(indices), dtype=torch.int64)


def _on_one_device(fake: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor without values, among others that have some, would make a result without any."""

    @functools.wraps(fake)
    def checked(*args: Any, **options: Any) -> Any:
        devices = {x.device for x in tree_leaves((args, options)) if isinstance(x, Tensor)}
        if len(devices) > 1:
            raise ValueError(
                f"all tensors must be on one device, got {', '.join(sorted(map(str, devices)))}"
            )
        return fake(*args, **options)

    return checked


def _register() -> None:
    library = torch.library
    for name, fake in (
        ("sites_of_mask", _sites_of_mask_fake),
        ("parent_rows", _parent_rows_fake),
        ("window_table", _window_table_fake),
        ("inverse_table", _inverse_table_fake),
        ("sparse_conv2d_cpu", _sparse_conv2d_fake),
        ("sparse_conv2d_cpu_weight_gradient", _weight_gradient_fake),
        ("depthwise_conv2d_cpu", _depthwise_fake),
        ("depthwise_conv2d_cpu_weight_gradient", _depthwise_gradient_fake),
        ("pointwise_conv_cpu", _pointwise_fake),
        ("dense_conv2d_cpu", _dense_conv2d_fake),
        ("deform_attn_cpu", _deform_attn_fake),
        ("deform_attn_cpu_backward", _deform_attn_backward_fake),
    ):
        library.register_fake(f"sparse_dset::{name}", _on_one_device(fake))
    library.register_autograd(
        "sparse_dset::sparse_conv2d_cpu", _sparse_conv2d_backward, setup_context=_sparse_conv2d_save
    )
    library.register_autograd(
        "sparse_dset::depthwise_conv2d_cpu", _depthwise_backward, setup_context=_depthwise_save
    )
    library.register_autograd(
        "sparse_dset::deform_attn_cpu", _deform_attn_backward, setup_context=_deform_attn_save
    )


if not native.unavailable_reason():
    _register()

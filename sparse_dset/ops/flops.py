"""FLOPs of the operators, by what is really multiplied (1 multiply-add = 2 FLOPs).

Importing this module makes ``torch.utils.flop_counter.FlopCounterMode`` count the operators of this
project; what else runs in their backward passes it knows itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from sparse_dset import native
from sparse_dset.ops import backends  # noqa: F401  they register the operators


def conv_flops(table: Tensor, in_channels: int, out_channels: int) -> int:
    """Counts a sparse convolution: 2 FLOPs per existing pair, input and output channel; no bias.

    Args:
        table: integers ``[N_out, taps]``, -1 = no pair.
        in_channels: that each output channel reads.
    """
    return 2 * int((table >= 0).sum()) * in_channels * out_channels


def sampling_flops(num_samples: int, channels: int) -> int:
    """Counts the bilinear sampling and weighted sum of deformable attention.

    It is stated beside the total, as FLOP counters leave ``grid_sample`` out.

    Args:
        num_samples: of all queries, heads, levels and points.
        channels: of a sample: four corners, a multiply-add each.
    """
    return 2 * 4 * num_samples * channels


@register_flop_formula(
    [torch.ops.sparse_dset.sparse_conv2d, torch.ops.sparse_dset.sparse_conv2d_spconv], get_raw=True
)
def _sparse_conv2d_flops(
    features: Tensor, weight: Tensor, table: Tensor, *_: Any, **__: Any
) -> int:
    return conv_flops(table, weight.shape[1], weight.shape[0])


@register_flop_formula(torch.ops.sparse_dset.depthwise_conv2d, get_raw=True)
def _depthwise_conv2d_flops(
    features: Tensor, weight: Tensor, table: Tensor, *_: Any, **__: Any
) -> int:
    return conv_flops(table, 1, weight.shape[0])


def _register_cpu() -> None:
    """Counts what the C++ operators stand for, whatever algorithm saves some of it."""
    ops = torch.ops.sparse_dset

    @register_flop_formula(ops.sparse_conv2d_cpu, get_raw=True)
    def _(features: Tensor, weight: Tensor, bias: Any, table: Tensor, *_: Any, **__: Any) -> int:
        return conv_flops(table, weight.shape[1], weight.shape[0])

    @register_flop_formula(ops.sparse_conv2d_cpu_weight_gradient, get_raw=True)
    def _(features: Tensor, grad: Tensor, table: Tensor, *_: Any, **__: Any) -> int:
        return conv_flops(table, features.shape[1], grad.shape[1])

    @register_flop_formula(ops.dense_conv2d_cpu, get_raw=True)
    def _(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
        return 2 * x.shape[0] * x.shape[2] * x.shape[3] * weight.numel()

    @register_flop_formula(ops.depthwise_conv2d_cpu, get_raw=True)
    def _(features: Tensor, weight: Tensor, bias: Any, table: Tensor, *_: Any, **__: Any) -> int:
        return conv_flops(table, 1, weight.shape[0])

    @register_flop_formula(ops.depthwise_conv2d_cpu_weight_gradient, get_raw=True)
    def _(features: Tensor, grad: Tensor, table: Tensor, *_: Any, **__: Any) -> int:
        return conv_flops(table, 1, features.shape[1])

    @register_flop_formula(ops.pointwise_conv_cpu, get_raw=True)
    def _(features: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
        return 2 * features.shape[0] * weight.numel()


def _register_vectors() -> None:
    """Counts products with vectors and sums of products, where PyTorch's own counter does not."""
    aten = torch.ops.aten
    formulas: dict[Any, Callable[..., int]] = {
        aten.mv: lambda matrix, *_: 2 * math.prod(matrix),
        aten.addmv: lambda _, matrix, *__: 2 * math.prod(matrix),
        aten.dot: lambda vector, *_: 2 * math.prod(vector),
        aten.vdot: lambda vector, *_: 2 * math.prod(vector),
        aten._int_mm: lambda a, b, *_: 2 * math.prod(a) * b[-1],
        aten.addbmm: lambda _, a, b, *__: 2 * math.prod(a) * b[-1],
    }
    for operator, formula in formulas.items():
        if operator not in flop_registry:
            register_flop_formula(operator)(_of_shapes(formula))


def _of_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    return lambda *shapes, out_shape=None, **named: formula(*shapes)


_register_vectors()
if not native.unavailable_reason():
    _register_cpu()

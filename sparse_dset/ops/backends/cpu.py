"""The backend of the C++ kernels in ``csrc/cpu``.

They compute in float32; half types are converted on the way in and out. Weights are packed inside,
once for every state of a weight (see csrc/cpu/derived.h).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_dset import native
from sparse_dset.checks import needs_gradient
from sparse_dset.ops.activations import activate
from sparse_dset.ops.backends import cpu_operators  # noqa: F401  registers shapes and gradients
from sparse_dset.ops.backends.reference import Backend
from sparse_dset.ops.shapes import check_addend
from sparse_dset.structures.grid import map_to_rows, rows_to_map
from sparse_dset.structures.support import Support, full_windows
from sparse_dset.structures.tables import Tables

SMALLEST_WINOGRAD = 32
"""Channels below which transforms cost more than they save."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_OPS = torch.ops.sparse_dset


class CpuTables(Tables):
    """Makes tables by the C++ kernels, for tensors on a CPU."""

    def sites(self, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        return _OPS.sites_of_mask(mask)

    def windows(self, row_map: Tensor, indices: Tensor, size: int, stride: int) -> Tensor:
        return _OPS.window_table(row_map, indices.contiguous(), size, stride)

    def parents(self, indices: Tensor, coarser_row_map: Tensor) -> Tensor:
        return _OPS.parent_rows(indices.contiguous(), coarser_row_map)


class Cpu(Backend):
    """Computes float32 and half types on a CPU.

    How a 3x3 convolution is computed: "indirect" multiplies existing pairs one tap at a time;
    "winogradM" makes MxM outputs at once with fewer multiplications (stride 1 only); "auto" takes
    the one that should be fastest for the sites at hand.
    """

    name = "cpu"
    served = "float32 and half types on a CPU"
    algorithms = ("auto", "indirect", "winograd2", "winograd4")
    tables = CpuTables()
    samples_maps = False
    projects_late = True

    def problem(self) -> str:
        return native.unavailable_reason()

    def serves(self, device: torch.device | str, dtype: torch.dtype) -> bool:
        return torch.device(device).type == "cpu" and dtype in _DTYPES

    def chosen_algorithm(self, support: Support, in_channels: int, out_channels: int) -> str:
        return _OPS.chosen_algorithm(
            support.neighbors(), support.row_map(), in_channels, out_channels
        )

    def sparse_conv2d(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        support: Support,
        stride: int,
        target: Support,
        algorithm: str,
        activation: str,
    ) -> Tensor:
        # A fused activation hides what its gradient needs.
        fused = "none" if needs_gradient(features, weight, bias) else activation
        table, row_map, algorithm = _windows(support, stride, target, algorithm)
        wide = None if bias is None else bias.float()
        out = _OPS.sparse_conv2d_cpu.default(
            features.float(), weight.float(), wide, table, row_map, algorithm, fused
        ).to(features.dtype)
        return out if fused == activation else activate(out, activation)

    def depthwise_conv2d(
        self, features: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, activation: str
    ) -> Tensor:
        fused = "none" if needs_gradient(features, weight, bias) else activation
        wide = None if bias is None else bias.float()
        out = _OPS.depthwise_conv2d_cpu.default(
            features.float(), weight.float(), wide, table, fused
        ).to(torch.promote_types(features.dtype, weight.dtype))
        return out if fused == activation else activate(out, activation)

    def sample(
        self,
        value: Tensor,
        supports: Sequence[Support],
        locations: Tensor,
        weights: Tensor,
        extents: Tensor,
        background: Tensor | None,
    ) -> Tensor:
        if background is None:
            background = value.new_zeros(len(supports), value.shape[1])
        sampled, _ = _sample(value, supports, locations, weights, extents, background, False)
        return sampled.flatten(2).to(value.dtype)

    def sample_whole_rows(
        self,
        rows: Tensor,
        supports: Sequence[Support],
        locations: Tensor,
        weights: Tensor,
        extents: Tensor,
        background: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return _sample(rows, supports, locations, weights, extents, background, True)

    # The kernels check arguments themselves. They stream weights through the caches, so that every
    # line of Python between them is read from memory again.

    def runs_kernels(self, x: Tensor) -> bool:
        return (
            x.dtype == torch.float32
            and x.is_cpu
            and x.layout == torch.strided
            and not torch.is_autocast_enabled("cpu")
        )

    def makes_strips(self, x: Tensor) -> bool:
        return self.runs_kernels(x)

    def dense_conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        activation: str,
        addend: Tensor | None,
    ) -> Tensor:
        maps = x.dim() == weight.dim() == 4 and x.numel() and weight.numel() and stride > 0
        if not (maps and self.runs_kernels(x) and weight.layout == torch.strided):
            return super().dense_conv2d(x, weight, bias, stride, activation, addend)
        batch, channels, height, width = x.shape
        size, groups = weight.shape[-1], channels // weight.shape[1]
        if addend is not None:
            check_addend(
                addend, (batch, weight.shape[0], -(-height // stride), -(-width // stride))
            )
        if groups == 1 and size == 1 and stride == 1:
            more = None if addend is None else map_to_rows(addend)
            out = _OPS.pointwise_conv_cpu.default(
                map_to_rows(x), weight.flatten(1), bias, more, None, activation
            )
            return rows_to_map(out, batch, height, width)
        if groups == 1 and size == 3 and stride == 1 and min(weight.shape[:2]) >= SMALLEST_WINOGRAD:
            return _OPS.dense_conv2d_cpu.default(x, weight, bias, "auto", activation, addend)
        depthwise = groups == channels == weight.shape[0]
        if depthwise and size <= 7 and stride in (1, 2) and addend is None:
            table = full_windows(batch, height, width, size, stride, x.device)
            out = _OPS.depthwise_conv2d_cpu.default(map_to_rows(x), weight, bias, table, activation)
            return rows_to_map(out, batch, -(-height // stride), -(-width // stride))
        return super().dense_conv2d(x, weight, bias, stride, activation, addend)

    def rows_conv2d(
        self,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        support: Support,
        stride: int,
        target: Support,
        algorithm: str,
        activation: str,
        addend: Tensor | None,
    ) -> Tensor:
        if not self.runs_kernels(rows):
            return super().rows_conv2d(
                rows, weight, bias, support, stride, target, algorithm, activation, addend
            )
        table, row_map, algorithm = _windows(support, stride, target, algorithm)
        return _OPS.sparse_conv2d_cpu.default(
            rows, weight, bias, table, row_map, algorithm, activation, False, addend
        )

    def pointwise_conv(
        self,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str,
        addend: Tensor | None,
        addend_rows: Tensor | None,
    ) -> Tensor:
        if not self.runs_kernels(rows):
            return super().pointwise_conv(rows, weight, bias, activation, addend, addend_rows)
        return _OPS.pointwise_conv_cpu.default(rows, weight, bias, addend, addend_rows, activation)


def _windows(
    support: Support, stride: int, target: Support, algorithm: str
) -> tuple[Tensor, Tensor | None, str]:
    """The tables that a 3x3 convolution reads, and how it is computed."""
    if stride == 1:
        return support.neighbors(), support.row_map(), algorithm
    return target.strided_neighbors(support), None, "indirect"


def _sample(
    rows: Tensor,
    supports: Sequence[Support],
    locations: Tensor,
    weights: Tensor,
    extents: Tensor,
    background: Tensor,
    whole_rows: bool,
) -> tuple[Tensor, Tensor]:
    """Samples in float32.

    Args:
        whole_rows: every head samples all columns, not its own share of them (not differentiable).
    """
    return _OPS.deform_attn_cpu(
        rows.float(),
        [support.row_map() for support in supports],
        [support.num_sites for support in supports],
        locations.float(),
        weights.float(),
        extents.float(),
        background.float(),
        whole_rows,
    )

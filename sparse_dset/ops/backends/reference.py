"""The backend that has every operator, in plain PyTorch, on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.checks import check_gradient, check_inside, check_tensor
from sparse_dset.ops.activations import activate, check_activation
from sparse_dset.ops.backends.reference_conv import (
    depthwise_conv2d_reference,
    sparse_conv2d_reference,
)
from sparse_dset.ops.backends.reference_sampling import sample_rows
from sparse_dset.ops.shapes import (
    check_addend,
    check_bias,
    check_dense_shapes,
    check_sparse_conv,
    in_one_type,
)
from sparse_dset.structures.support import Support
from sparse_dset.structures.tables import PLAIN_TABLES, Tables


class Backend:
    """Computes the operators; as it is, it is the reference.

    Another backend derives from it and overrides what it does faster.

    Attributes:
        name: what configurations and rows of results call it.
        served: what it computes, in words.
        algorithms: how it can compute a 3x3 convolution of stride 1, "auto" first.
        tables: makes the lookup tables of supports.
        samples_maps: whether dense maps are sampled faster as maps than as rows.
        projects_late: whether it can sample rows before they are projected.
    """

    name: str = "reference"
    served: str = "every type on every device"
    algorithms: tuple[str, ...] = ("auto",)
    tables: Tables = PLAIN_TABLES
    samples_maps: bool = True
    projects_late: bool = False

    def problem(self) -> str:
        """Returns "" if it can run here, else the reason why not."""
        return ""

    def serves(self, device: torch.device | str, dtype: torch.dtype) -> bool:
        """Tells whether it computes on a device, in a type."""
        return True

    def chosen_algorithm(self, support: Support, in_channels: int, out_channels: int) -> str | None:
        """Returns what "auto" means for a 3x3 convolution of stride 1; None: there is no choice."""
        return None

    # Arguments of these are those of the public functions, checked already.

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
        """See ``ops.sparse_conv2d``; features, weight and bias are of one type."""
        table = support.neighbors() if stride == 1 else target.strided_neighbors(support)
        out = sparse_conv2d_reference(features, weight, table)
        return activate(out if bias is None else out + bias, activation)

    def depthwise_conv2d(
        self, features: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, activation: str
    ) -> Tensor:
        """See ``ops.depthwise_conv2d``; ``table`` holds the windows, int32 ``[N_out, k * k]``."""
        dtype = torch.promote_types(features.dtype, weight.dtype)
        out = depthwise_conv2d_reference(features.to(dtype), weight.to(dtype), table)
        return activate(out if bias is None else out + bias.to(dtype), activation)

    def sample(
        self,
        value: Tensor,
        supports: Sequence[Support],
        locations: Tensor,
        weights: Tensor,
        extents: Tensor,
        background: Tensor | None,
    ) -> Tensor:
        """See ``ops.sparse_deform_attn``."""
        return sample_rows(value, supports, locations, weights, extents, background)

    def sample_whole_rows(
        self,
        rows: Tensor,
        supports: Sequence[Support],
        locations: Tensor,
        weights: Tensor,
        extents: Tensor,
        background: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Samples all columns for every head, without gradients, where ``projects_late``.

        Returns:
            ``[B, Q, heads, C]``, and how much of each head's weight fell inside the image,
            ``[B, Q, heads]``.
        """
        raise NotImplementedError

    # These are for inference, without gradients, and check their arguments themselves.

    def runs_kernels(self, x: Tensor) -> bool:
        """Tells whether kernels of its own compute with a tensor in the functions below."""
        return False

    def makes_strips(self, x: Tensor) -> bool:
        """Tells whether ``ops.inverted_residual`` can compute with a tensor."""
        return False

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
        """See ``ops.rows_conv2d``."""
        check_sparse_conv(rows, weight, bias, support)
        rows, weight, bias = in_one_type(rows, weight, bias)
        out = self.sparse_conv2d(rows, weight, bias, support, stride, target, algorithm, "none")
        return finish(out, addend, activation)

    def dense_conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        activation: str,
        addend: Tensor | None,
    ) -> Tensor:
        """See ``ops.dense_conv2d``."""
        check_dense_shapes(x, weight, stride)
        _check_types("x", x, weight, bias)
        groups = x.shape[1] // weight.shape[1]
        out = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)
        return finish(out, addend, activation)

    def pointwise_conv(
        self,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str,
        addend: Tensor | None,
        addend_rows: Tensor | None,
    ) -> Tensor:
        """See ``ops.pointwise_conv``."""
        check_tensor("rows", rows, "[N, C_in]")
        check_tensor("weight", weight, "[C_out, C_in]", "float", rows.device)
        if weight.shape[1] != rows.shape[1]:
            raise ValueError(f"weight must be [C_out, {rows.shape[1]}], got {tuple(weight.shape)}")
        _check_types("rows", rows, weight, bias)
        if addend is not None and addend_rows is not None:
            check_tensor("addend", addend, "[M, C_out]", "float", rows.device)
            check_inside("addend_rows", addend_rows, len(rows), len(addend), rows.device)
            addend = addend.index_select(0, addend_rows)
        return finish(F.linear(rows, weight, bias), addend, activation)


def _check_types(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Checks what PyTorch's operators want of a convolution's arguments."""
    check_bias(bias, weight)
    check_gradient(x, weight, bias)
    types = {tensor.dtype for tensor in (x, weight, bias) if tensor is not None}
    if len(types) > 1 and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f"{name}, weight and bias must have one type, got {', '.join(map(str, types))}"
        )


def finish(out: Tensor, addend: Tensor | None, activation: str) -> Tensor:
    """Adds and activates in place."""
    check_activation(activation)
    if addend is not None:
        check_addend(addend, tuple(out.shape))
        check_tensor("addend", addend, str(list(out.shape)), "float", out.device)
        out = out.add_(addend)
    return activate(out, activation, inplace=True)

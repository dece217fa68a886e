"""The sparse convolution by spconv: the only file that touches it.

What to know about spconv 2.3.6: weights are [C_out, 3, 3, C_in]; on CPU only the Native algorithm
runs, in float32 and float64, without bias; bfloat16 is unknown to it; sites that are not contiguous
int32 give wrong numbers without an error; zero sites raise; a stride-2 convolution makes every site
that a window reaches. Wrong rows have been reported from CPU runs with several threads. Its library
starts no threads itself (they come from PyTorch's matrix products alone), so there is nothing to
hold to one thread; what can be checked cheaply, the order of the sites, is checked at each call.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.weak import WeakTensorKeyDictionary

from sparse_dset.checks import savable
from sparse_dset.ops.activations import activate
from sparse_dset.ops.backends.reference import Backend
from sparse_dset.structures.support import Support

TESTED_VERSION = "2.3.6"

# spconv's pair tables by the sites that they were made from; they go when their support goes.
_tables = WeakTensorKeyDictionary()


class Spconv(Backend):
    """Convolves with spconv; everything else is the reference's."""

    name = "spconv"

    def problem(self) -> str:
        try:
            _spconv()
        except ImportError as error:
            return str(error)
        return ""

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
        table = support.neighbors() if stride == 1 else target.strided_neighbors(support)
        out = _sparse_conv2d_spconv(
            features, weight, table, support.indices, target.indices, support.shape, stride
        )
        return activate(out if bias is None else out + bias, activation)


@torch.library.custom_op("sparse_dset::sparse_conv2d_spconv", mutates_args=())
def _sparse_conv2d_spconv(
    features: Tensor,
    weight: Tensor,
    table: Tensor,
    indices: Tensor,
    out_indices: Tensor,
    grid: Sequence[int],
    stride: int,
) -> Tensor:
    """Convolves; an operator, so that FLOP counters see the pairs in ``table``."""
    return _convolve(features, weight, indices, out_indices, grid, stride)


@_sparse_conv2d_spconv.register_fake
def _(features, weight, table, indices, out_indices, grid, stride):  # noqa: ANN001, ANN202
    return features.new_empty(table.shape[0], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, weight, _, indices, out_indices, ctx.grid, ctx.stride = inputs
    ctx.save_for_backward(*savable(features, weight, indices, out_indices))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # spconv's own autograd cannot run inside an operator's forward, so the forward runs again here.
    features, weight, indices, out_indices = ctx.saved_tensors
    rest = (None,) * 5
    if 0 in (len(indices), len(out_indices), len(weight)):
        return torch.zeros_like(features), torch.zeros_like(weight), *rest
    with torch.enable_grad():
        features, weight = features.detach().requires_grad_(), weight.detach().requires_grad_()
        out = _convolve(features, weight, indices, out_indices, ctx.grid, ctx.stride)
        grads = torch.autograd.grad(out, (features, weight), grad)
    return *grads, *rest


_sparse_conv2d_spconv.register_autograd(_backward, setup_context=_save)


def _convolve(
    features: Tensor,
    weight: Tensor,
    indices: Tensor,
    out_indices: Tensor,
    grid: Sequence[int],
    stride: int,
) -> Tensor:
    if 0 in (len(indices), len(out_indices), len(weight)):
        return features.new_zeros(len(out_indices), weight.shape[0])
    dtype = features.dtype
    if not features.is_cuda or dtype == torch.bfloat16:
        dtype = torch.promote_types(dtype, torch.float32)
    rows, sites = _run(features.to(dtype), weight.to(dtype), indices, grid, stride)
    if stride == 1:
        if not torch.equal(sites, indices):
            raise RuntimeError("spconv returned the sites in another order than it was given")
        return rows.to(features.dtype)
    return _select(rows, sites, out_indices, grid).to(features.dtype)


def _run(
    features: Tensor, weight: Tensor, indices: Tensor, grid: Sequence[int], stride: int
) -> tuple[Tensor, Tensor]:
    """Returns spconv's rows ``[N', C_out]`` and their sites ``[N', 3]``."""
    assert indices.dtype == torch.int32
    assert indices.is_contiguous()
    batch_size, height, width = grid
    if indices not in _tables:
        # A table holds the sites it is made from: a copy of them keeps the key free to go.
        _tables[indices] = (indices.clone(), {})
    sites, tables = _tables[indices]
    sparse = _spconv().SparseConvTensor(
        features.contiguous(), sites, [height, width], batch_size, indice_dict=tables
    )
    layer = _layer(weight.shape[1], weight.shape[0], stride, features.is_cuda)
    kernel = weight.permute(0, 2, 3, 1).contiguous()
    with torch.autocast(features.device.type, enabled=False):
        out = functional_call(layer, {"weight": kernel}, (sparse,))
    return out.features, out.indices


def _select(rows: Tensor, sites: Tensor, wanted: Tensor, grid: Sequence[int]) -> Tensor:
    """Picks wanted sites of the halved grid by coordinate; sites that were not made are zero."""
    batch_size, height, width = grid[0], (grid[1] + 1) // 2, (grid[2] + 1) // 2

    def flat(indices: Tensor) -> Tensor:
        batch, y, x = indices.long().unbind(1)
        return (batch * height + y) * width + x

    place = torch.full((batch_size * height * width,), len(rows), device=rows.device)
    place[flat(sites)] = torch.arange(len(rows), device=rows.device)
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return padded.index_select(0, place[flat(wanted)])


@functools.cache
def _layer(in_channels: int, out_channels: int, stride: int, cuda: bool) -> nn.Module:
    """Builds a layer that is lent its weight at each call."""
    spconv = _spconv()
    algorithm = spconv.ConvAlgo.MaskImplicitGemm if cuda else spconv.ConvAlgo.Native
    kind = spconv.SubMConv2d if stride == 1 else spconv.SparseConv2d
    key = "stride1" if stride == 1 else None
    with torch.device("meta"):
        return kind(
            in_channels,
            out_channels,
            kernel_size=3,
            stride=stride,
            padding=1,
            bias=False,
            indice_key=key,
            algo=algorithm,
        )


@functools.cache
def _spconv() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return importlib.import_module("spconv.pytorch")
    except Exception as error:  # a wheel of another system fails in many ways
        raise ImportError(
            f"package spconv cannot be imported ({error}); tested with version {TESTED_VERSION}: "
            f"pip install spconv-cu120=={TESTED_VERSION}"
        ) from error

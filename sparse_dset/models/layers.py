"""Layers written once for every kind of feature map: tensor, ``MaskedMap`` and ``SparseMap``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # SyncBatchNorm is one too
from torchvision.ops import FrozenBatchNorm2d

from sparse_dset.models.synced_norm import has_statistics
from sparse_dset.ops import (
    dense_conv2d,
    depthwise_conv2d,
    pointwise_conv,
    rows_conv2d,
    segment_sum,
    sparse_conv2d,
)
from sparse_dset.ops.activations import activate, check_activation
from sparse_dset.ops.segment import take, widened
from sparse_dset.ops.windows import window_rows
from sparse_dset.structures import MaskedMap, SparseMap, Support, map_to_rows, rows_to_map
from sparse_dset.structures.maps import FeatureMap

MOST_LAYERS = 1000
"""One after the other; a larger number is a mistake, and would be built until memory ends."""

Place = FeatureMap | Support | None
"""Where a strided layer of a map with a support is evaluated: the sites of a coarser level, or a
map that has them. Tensors do not need it."""


def conv2d(
    x: FeatureMap,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    onto: Place = None,
) -> FeatureMap:
    """Convolves with "same" padding; never dilates the support.

    Args:
        weight: ``[C_out, C_in / groups, k, k]`` with odd k. On kept sites: sizes 1 and 3 in one
            group, and up to 7 with a group per channel.
        stride: 1 or 2.
        onto: where a strided convolution of a map with a support is evaluated.

    Raises:
        ValueError: a convolution that has no form on kept sites.
    """
    if isinstance(x, SparseMap):
        target = x.support if stride == 1 else _support_of(onto)
        return SparseMap(_conv_rows(x, weight, bias, stride, target), target)
    tensor = _values(x)
    groups = tensor.shape[1] // weight.shape[1]
    out = F.conv2d(tensor, weight, bias, stride, weight.shape[-1] // 2, groups=groups)
    return _like(x, out, stride, onto)


def _conv_rows(
    x: SparseMap, weight: Tensor, bias: Tensor | None, stride: int, target: Support
) -> Tensor:
    size, groups = weight.shape[-1], x.features.shape[1] // weight.shape[1]
    if groups == 1 and size == 1:
        return F.linear(_strided_rows(x, stride, target), weight.flatten(1), bias)
    if groups == 1 and size == 3:
        return sparse_conv2d(x.features, weight, bias, x.support, stride, target)
    _check_depthwise(weight, groups)
    return depthwise_conv2d(x.features, weight, bias, x.support, stride, target)


def _strided_rows(x: SparseMap, stride: int, target: Support) -> Tensor:
    """Returns what a 1x1 convolution reads: the rows at every site or, strided, at (2y, 2x)."""
    if stride == 1:
        return x.features
    return window_rows(x.features, target.strided_neighbors(x.support, 1))


def _check_depthwise(weight: Tensor, groups: int) -> None:
    if groups != weight.shape[0] or weight.shape[1] != 1:
        raise ValueError(
            f"a convolution of weights {tuple(weight.shape)} in {groups} groups has no form on "
            "kept sites: it must be 1x1 or 3x3 in one group, or depthwise"
        )


def _like(x: FeatureMap, out: Tensor, stride: int, onto: Place) -> FeatureMap:
    """Returns a layer's dense output as a map of the same kind as its input."""
    if not isinstance(x, MaskedMap):
        return out
    return MaskedMap.from_dense(out, x.support if stride == 1 else _support_of(onto))


def average_pool(x: FeatureMap, onto: Place = None) -> FeatureMap:
    """Halves the resolution: the mean of 2x2 cells, of which those that are not kept are zero.

    Windows at an odd border are smaller, and their mean is over the cells that they have.
    """
    if not isinstance(x, SparseMap):
        return _like(x, F.avg_pool2d(_values(x), 2, ceil_mode=True), 2, onto)
    target = _support_of(onto)
    sums = segment_sum(widened(x.features), x.support.parents(target), target.num_sites)
    _, y, x_cell = target.indices.unbind(1)
    cells = (x.support.height - 2 * y).clamp(max=2) * (x.support.width - 2 * x_cell).clamp(max=2)
    means = sums / cells[:, None].to(sums.dtype)
    return SparseMap(means.to(x.features.dtype), target)


def upsample_onto(x: FeatureMap, onto: Place) -> FeatureMap:
    """Doubles the resolution: each site of ``onto`` takes the value of its parent site."""
    if isinstance(x, SparseMap):
        support = _support_of(onto)
        return SparseMap(take(x.features, support.parents(x.support)), support)
    if isinstance(x, MaskedMap):
        return MaskedMap.from_dense(_nearest(x.tensor), _support_of(onto))
    return _nearest(x)


def concat(a: FeatureMap, b: FeatureMap) -> FeatureMap:
    """Concatenates the channels of two maps of the same kind on the same sites."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.cat([a, b], dim=1)
    assert not isinstance(a, Tensor)
    assert type(a) is type(b)
    return a.cat(b)  # type: ignore[arg-type]


def add(a: FeatureMap, b: FeatureMap) -> FeatureMap:
    """Adds two maps of the same kind on the same sites."""
    return a + b  # type: ignore[operator]


def rows_of(x: FeatureMap) -> Tensor:
    """Returns a map's sites, of a dense one all of them, as rows ``[N, C]``."""
    if isinstance(x, SparseMap):
        return x.features
    tensor = x.tensor if isinstance(x, MaskedMap) else x
    return map_to_rows(tensor)


def map_of(rows: Tensor, like: FeatureMap) -> FeatureMap:
    """Returns the map whose ``rows_of`` these are, on the sites of ``like``."""
    if isinstance(like, SparseMap):
        return like.with_features(rows)
    tensor = like.tensor if isinstance(like, MaskedMap) else like
    batch, _, height, width = tensor.shape
    dense = rows_to_map(rows, batch, height, width)
    return MaskedMap.from_dense(dense, like.support) if isinstance(like, MaskedMap) else dense


def parent_rows(x: FeatureMap, coarser: FeatureMap) -> Tensor:
    """Returns the row of ``coarser`` over each row of ``x``: int64 ``[N]``."""
    if isinstance(x, SparseMap) and isinstance(coarser, SparseMap):
        return x.support.parents(coarser.support)
    tensors = [m.tensor if isinstance(m, MaskedMap) else m for m in (x, coarser)]
    (batch, _, *size), (*_, rows, columns) = (map(int, t.shape) for t in tensors)  # type: ignore[union-attr]
    return _full_parents(batch, *size, rows, columns, tensors[0].device)  # type: ignore[union-attr]


@functools.lru_cache(maxsize=32)
def _full_parents(
    batch: int, height: int, width: int, rows: int, columns: int, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # it outlives the forward pass
        coarser = Support.full(batch, rows, columns, device)
        return Support.full(batch, height, width, device).parents(coarser)


def pointwise(x: FeatureMap, function: Callable[[Tensor], Tensor]) -> FeatureMap:
    """Applies an elementwise function that maps 0 to 0 (so that empty sites stay empty)."""
    if isinstance(x, SparseMap):
        return x.with_features(function(x.features))
    if isinstance(x, MaskedMap):
        return MaskedMap(function(x.tensor), x.support)
    return function(x)


def batch_norm(x: FeatureMap, norm: nn.Module) -> FeatureMap:
    """Normalises with statistics, in training, of the sites that the map holds."""
    if isinstance(x, Tensor):
        return _normalise(x, norm)
    return on_rows(x, lambda rows: _normalise(rows[:, :, None, None], norm).flatten(1))


def on_rows(x: SparseMap | MaskedMap, function: Callable[[Tensor], Tensor]) -> FeatureMap:
    """Applies a function of rows ``[N, C]`` to the sites that a map holds."""
    rows = x if isinstance(x, SparseMap) else SparseMap.from_dense(x.tensor, x.support)
    out = rows.with_features(function(rows.features))
    return out if isinstance(x, SparseMap) else MaskedMap(out.to_dense(), x.support)


def _normalise(x: Tensor, norm: nn.Module) -> Tensor:
    # PyTorch's synchronised layer asks the other processes, which wait for this one.
    alone = not isinstance(norm, nn.SyncBatchNorm) or not torch.distributed.is_initialized()
    if norm.training and isinstance(norm, _BatchNorm) and alone and not has_statistics(x):
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    return norm(x)


def _values(x: FeatureMap) -> Tensor:
    """Returns the tensor that a map is or holds, in the layout that it has."""
    if isinstance(x, SparseMap):
        return x.features
    return x.tensor if isinstance(x, MaskedMap) else x


def _nearest(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _support_of(place: Place) -> Support:
    if place is None or isinstance(place, Tensor):
        raise TypeError("the target of a map with a support must be a support, or a map with one")
    return place if isinstance(place, Support) else place.support


class Fusable(nn.Module):
    """A module that has an inference form."""

    def fused(self) -> nn.Module:
        """Returns the inference form; it may be the module itself, changed."""
        raise NotImplementedError


class FusedConv(nn.Module):
    """The inference form of a convolution with what follows it: no gradients, no normalisation.

    Args:
        weight, bias: with the normalisation folded in.
        activation: one of ``ops.activations.ACTIVATIONS``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, activation: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
        self.stride = stride
        self.activation = activation

    def forward(
        self, x: FeatureMap, onto: Place = None, addend: FeatureMap | None = None
    ) -> FeatureMap:
        return fused_conv2d(x, self.weight, self.bias, self.stride, self.activation, onto, addend)


def fused_conv2d(
    x: FeatureMap,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    activation: str,
    onto: Place = None,
    addend: FeatureMap | None = None,
) -> FeatureMap:
    """Does what ``conv2d`` does, adds another map and applies an activation, without gradients."""
    more = None if addend is None else _values(addend)
    if not isinstance(x, SparseMap):
        out = dense_conv2d(_values(x), weight, bias, stride, activation, more)
        return _like(x, out, stride, onto)
    target = x.support if stride == 1 else _support_of(onto)
    size, groups = weight.shape[-1], x.features.shape[1] // weight.shape[1]
    if groups == 1 and size == 1:
        rows = _strided_rows(x, stride, target)
        out = pointwise_conv(rows, weight.flatten(1), bias, activation, more)
    elif groups == 1 and size == 3:
        out = rows_conv2d(x.features, weight, bias, x.support, stride, target, activation, more)
    else:
        _check_depthwise(weight, groups)
        assert more is None
        out = depthwise_conv2d(
            x.features, weight, bias, x.support, stride, target, activation=activation
        )
    return SparseMap(out, target)


class ConvNormLayer(Fusable):
    """Convolution, batch normalisation, perhaps the sum with another map, activation.

    In evaluation the normalisation is folded into the convolution's weights, which is exact.

    Args:
        activation: one of ``ops.activations.ACTIVATIONS``.
        frozen_norm: normalise with constant statistics and parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        activation: str = "none",
        frozen_norm: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False
        )
        self.norm = (FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d)(out_channels)
        self.activation = check_activation(activation)
        self.stride = stride

    def folded(self) -> tuple[Tensor, Tensor]:
        """Returns weight and bias of the one convolution that equals conv + norm in evaluation."""
        return fold_norm(self.conv.weight, self.norm)

    def fused(self) -> FusedConv:
        return FusedConv(*self.folded(), self.stride, self.activation)

    def forward(
        self, x: FeatureMap, onto: Place = None, addend: FeatureMap | None = None
    ) -> FeatureMap:
        if self.norm.training and isinstance(self.norm, _BatchNorm):
            x = conv2d(x, self.conv.weight, stride=self.stride, onto=onto)
            x = batch_norm(x, self.norm)
        else:
            x = conv2d(x, *self.folded(), stride=self.stride, onto=onto)
        x = x if addend is None else add(x, addend)
        return pointwise(x, lambda y: activate(y, self.activation))


def fold_norm(weight: Tensor, norm: nn.Module, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Folds the evaluation form of a batch normalisation into the convolution before it.

    Args:
        weight, bias: of the convolution, ``[C_out, C_in, k, k]`` and ``[C_out]``.
        norm: with weight, bias, running_mean, running_var and eps.

    Returns:
        Weight and bias of the one convolution that equals both.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # type: ignore[operator]
    shift = -norm.running_mean if bias is None else bias - norm.running_mean  # type: ignore[operator]
    return weight * scale[:, None, None, None], norm.bias + shift * scale  # type: ignore[operator]


class MLP(nn.Module):
    """A stack of linear layers with ReLU between them.

    Args:
        dims: input, hidden and output widths.
    """

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def within_half(x: Tensor) -> Tensor:
    """Clamps float16 values that left the range of the type; other types pass as they are."""
    if x.dtype != torch.float16:
        return x
    return x.clamp(min=-65504.0, max=65504.0)


def at_least_float32(x: Tensor) -> Tensor:
    """Converts half types to float32; other types pass as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

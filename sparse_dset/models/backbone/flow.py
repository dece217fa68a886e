"""Runs modules that were written for tensors on maps with a support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.models.layers import Place, add, conv2d, on_rows, pointwise
from sparse_dset.models.synced_norm import norm_rows
from sparse_dset.structures import MaskedMap, SparseMap, Support

SupportedMap = SparseMap | MaskedMap

_NO_FORM = (
    "which has no form on kept sites: choose pruner.stage=s5, or a backbone of convolutions, "
    "normalisations and activations"
)


@dataclass(frozen=True)
class Flow:
    """A map on its way through the modules of a convolutional network.

    PyTorch's functions, called with it, do on the kept sites what they do on a tensor; a function
    that has no meaning there is an error.

    Attributes:
        map: the map.
        onto: the sites of the coarser levels, finest first: strided layers are evaluated there.
    """

    map: SupportedMap
    onto: tuple[Support, ...]

    ndim = 4

    def dim(self) -> int:
        return self.ndim

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"this backbone uses a map's {name}, {_NO_FORM}")

    def step(self, layer: Callable[[SupportedMap, Place], Any], stride: int) -> Flow:
        """Applies a layer that takes a map and, where it is strided, the next coarser sites."""
        if stride == 1:
            return Flow(layer(self.map, None), self.onto)
        if not self.onto:
            raise ValueError("a strided layer after the coarsest level")
        return Flow(layer(self.map, self.onto[0]), self.onto[1:])

    def __add__(self, other: Flow) -> Flow:
        return Flow(add(self.map, other.map), self.onto)  # type: ignore[arg-type]

    def __mul__(self, factor: float) -> Flow:
        if not isinstance(factor, int | float):
            raise ValueError(
                f"this backbone multiplies a map by a {type(factor).__name__}, {_NO_FORM}"
            )
        return self.step(lambda m, _: pointwise(m, lambda v: v * factor), 1)

    __rmul__ = __mul__

    @classmethod
    def __torch_function__(
        cls,
        function: Callable,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in _ELEMENTWISE:
            x, *rest = args
            return x.step(lambda m, _: pointwise(m, lambda v: function(v, *rest, **kwargs)), 1)
        if function not in _LAYERS:
            name = getattr(function, "__name__", function)
            raise ValueError(f"this backbone calls {name}, {_NO_FORM}")
        return _LAYERS[function](*args, **kwargs)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Returns a setting of both axes as (vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


def is_same_convolution(
    weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Tells whether a convolution is square, with "same" padding, stride 1 or 2, without dilation,
    and in one group or one per channel."""
    height, width = weight.shape[2:]
    return (
        height == width
        and height % 2 == 1
        and pair(padding) == (height // 2, height // 2)
        and pair(stride) in ((1, 1), (2, 2))
        and pair(dilation) == (1, 1)
        and groups in (1, weight.shape[0])
    )


def check_same_convolution(
    weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> None:
    """Raises a ValueError if a convolution cannot run on kept sites."""
    if not is_same_convolution(weight, stride, padding, dilation, groups):
        raise ValueError(
            f"a convolution of weights {tuple(weight.shape)}, stride {stride}, padding {padding}, "
            f"dilation {dilation} in {groups} groups, {_NO_FORM}"
        )


def _conv2d(
    x: Flow,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Flow:
    check_same_convolution(weight, stride, padding, dilation, groups)
    step = pair(stride)[0]
    return x.step(lambda m, onto: conv2d(m, weight, bias, step, onto), step)  # type: ignore[arg-type]


def _batch_norm(x: Flow, *settings: Any, **named: Any) -> Flow:
    return x.step(lambda m, _: on_rows(m, lambda rows: norm_rows(rows, *settings, **named)), 1)


_LAYERS: dict[Callable, Callable[..., Flow]] = {torch.conv2d: _conv2d, F.batch_norm: _batch_norm}

# Functions that map 0 to 0: empty sites stay empty.
_ELEMENTWISE = frozenset(
    {
        F.relu, F.relu6, F.silu, F.hardswish, F.gelu, F.leaky_relu, F.hardtanh, F.mish, F.elu,
        torch.relu, torch.relu_, torch.tanh, F.dropout,
    }
)  # fmt: skip

"""Batch normalisation with the statistics of all processes, for any kind of map."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_depth: ContextVar[int] = ContextVar("depth of SyncedBatchNorm", default=0)  # of this thread


def has_statistics(x: Tensor) -> bool:
    """Whether ``[N, C, ...]`` has a variance to be normalised by: a single site has none.

    Where processes share their statistics, they all must take part, whatever they hold.
    """
    return x.numel() > x.shape[1] or SyncedBatchNorm.is_active()


def norm_rows(
    rows: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Does what ``F.batch_norm`` does to ``[N, C, ...]``, of which there may be one or none.

    Those that have no statistics are normalised by the running ones, where there are some.
    """
    fresh = training and (has_statistics(rows) or running_mean is None)
    return F.batch_norm(rows, running_mean, running_var, weight, bias, fresh, momentum, eps)


class SingleValuesNormalised(TorchFunctionMode):
    """Within it, layers of other libraries normalise one value per channel as ``norm_rows`` does.

    A small image leaves one at the coarsest level, a mean over the map one in every image: of a
    batch of one image, PyTorch then refuses to train.
    """

    def __torch_function__(
        self,
        function: Callable,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is F.batch_norm and args and isinstance(args[0], Tensor):
            return norm_rows(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


class SyncedBatchNorm(TorchFunctionMode):
    """Within it, every training batch normalisation takes the statistics of all processes.

    The processes may hold different numbers of sites, and one may hold none. Unlike
    ``torch.nn.SyncBatchNorm`` it replaces no modules, and so serves tensors and rows, and modules
    of other libraries that call ``batch_norm``, on any device.
    """

    @classmethod
    def is_active(cls) -> bool:
        """Whether batch normalisation is synchronised now."""
        return _depth.get() > 0

    def __enter__(self) -> SyncedBatchNorm:
        _depth.set(_depth.get() + 1)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _depth.set(_depth.get() - 1)
        super().__exit__(*error)

    def __torch_function__(
        self,
        function: Callable,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.batch_norm:
            return function(*args, **kwargs)
        if isinstance(args[0], Tensor):
            return _batch_norm(*args, **kwargs)
        with self:  # a map of another kind, which asks again for its rows
            return args[0].__torch_function__(function, types, args, kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    count = _sum_over_processes(wide.new_tensor([x.numel() / max(x.shape[1], 1)]))
    mean = _sum_over_processes(wide.sum(axes)) / count.clamp(min=1)
    centred = wide - mean.view(shape)
    squares = _sum_over_processes(centred.square().sum(axes))
    var = squares / count.clamp(min=1)
    if running_mean is not None and running_var is not None:
        if count < 2:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((squares / (count - 1)).to(running_var.dtype), momentum)
    y = centred * (var + eps).rsqrt().view(shape)
    if weight is not None and bias is not None:
        y = y * weight.view(shape) + bias.view(shape)
    return y.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes; so is its gradient, since each of them used the sum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(value: Tensor) -> Tensor:
    if not dist.is_initialized():
        return value
    return _Sum.apply(value)

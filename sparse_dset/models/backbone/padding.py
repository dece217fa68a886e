"""Keeps padding out of a dense backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sparse_dset.models.layers import on_rows
from sparse_dset.models.synced_norm import norm_rows
from sparse_dset.structures import MaskedMap, Support

_MIXING = ("conv2d", "max_pool2d", "avg_pool2d", "dense_conv2d")


class padding_stays_zero(TorchFunctionMode):  # noqa: N801 - used like a function
    """Within this context every convolution and pooling sees zeros in the padding.

    A padded image then gives, inside, what it gives alone: a convolution pads its input with zeros,
    and biases and normalisation would fill the padding with something else after the first layer.
    Means over the whole map (squeeze and excitation) and the statistics of a training batch
    normalisation are those of the image. Works for convolutional backbones without a change to
    them; attention over the whole image would still see the padding.

    Args:
        pixel_mask: bool ``[B, H, W]``, True = part of the image.
    """

    def __init__(self, pixel_mask: Tensor) -> None:
        super().__init__()
        self._pixels = pixel_mask.unsqueeze(1).float()

    def __torch_function__(
        self,
        function: Callable,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if not args or not _is_map(args[0]):
            return function(*args, **kwargs)
        x, *rest = args
        if function is F.batch_norm:
            return self._batch_norm(x, *rest, **kwargs)
        if name == "mean":
            # Zeros add nothing to the sum, but the whole map has more cells than the image.
            mask = self._mask(x)
            return function(x * mask, *rest, **kwargs) / function(mask, *rest, **kwargs)
        if name in _MIXING:
            x = x * self._mask(x)
        return function(x, *rest, **kwargs)

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        settings: tuple[Any, ...] = (running_mean, running_var, weight, bias, training, *rest)
        if not training:
            return F.batch_norm(x, *settings, **named)
        inside = Support.from_mask(self._mask(x).squeeze(1).bool())
        normalised = on_rows(MaskedMap(x, inside), lambda rows: norm_rows(rows, *settings, **named))
        assert isinstance(normalised, MaskedMap)
        return normalised.tensor

    def _mask(self, x: Tensor) -> Tensor:
        stride = round(self._pixels.shape[-1] / x.shape[-1])
        mask = self._pixels if stride == 1 else F.max_pool2d(self._pixels, stride)
        if mask.shape[-2:] != x.shape[-2:]:
            raise ValueError(
                f"a map of {tuple(x.shape[-2:])} is no whole fraction of the image "
                f"{tuple(self._pixels.shape[-2:])}: this backbone cannot take padded batches; "
                "choose images of one size, whose sides are multiples of 32"
            )
        return mask.to(x.dtype)


def _is_map(x: object) -> bool:
    """Whether this has cells; a single one may stand for the whole image, without any padding."""
    return isinstance(x, Tensor) and x.dim() == 4 and x.shape[-2:] != (1, 1)

"""Keeps padding out of a dense backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MIXING = ("conv2d", "max_pool2d", "avg_pool2d", "dense_conv2d")


class padding_stays_zero(TorchFunctionMode):  # noqa: N801 - used like a function
    """Within this context every convolution and pooling sees zeros in the padding.

    A padded image then gives, inside, what it gives alone: a convolution pads its input with zeros,
    and biases and normalisation would fill the padding with something else after the first layer.
    Works for convolutional backbones without a change to them; attention or pooling over the whole
    image would still see the padding.

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
        if getattr(function, "__name__", "") in _MIXING and isinstance(args[0], Tensor):
            x, *rest = args
            args = (x * self._mask(x), *rest)
        return function(*args, **(kwargs or {}))

    def _mask(self, x: Tensor) -> Tensor:
        stride = round(self._pixels.shape[-1] / x.shape[-1])
        mask = self._pixels if stride == 1 else F.max_pool2d(self._pixels, stride)
        if mask.shape[-2:] != x.shape[-2:]:
            raise ValueError(
                f"a map of {tuple(x.shape[-2:])} is no whole fraction of the image "
                f"{tuple(self._pixels.shape[-2:])}: this backbone cannot take padded batches"
            )
        return mask.to(x.dtype)

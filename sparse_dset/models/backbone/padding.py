"""Keeps padding out of a dense backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from sparse_dset.models.layers import on_rows
from sparse_dset.models.synced_norm import norm_rows
from sparse_dset.ops.segment import widened
from sparse_dset.structures import MaskedMap, Support
from sparse_dset.structures.geometry import STRIDES, Geometry, pad_batch

Run = Callable[[Tensor, range], list[Tensor]]
"""A backbone on tensors: see ``Backbone.forward``."""


def run_masked(run: Run, x: Tensor, levels: range, geometry: Geometry) -> list[Tensor]:
    """Runs a backbone on a batch, within ``padding_stays_zero``; see ``Backbone.extract``."""
    with padding_stays_zero(geometry.pixel_mask()):
        features = run(x, levels)
    return _without_padding(features, levels, geometry)


def run_apart(run: Run, x: Tensor, levels: range, geometry: Geometry) -> list[Tensor]:
    """Runs a backbone on each image of a batch at its own size; see ``Backbone.extract``.

    The own size is rounded up to whole cells of stride 32, as it is for the image alone: there
    the backbone sees a border of up to 31 black pixels, in a batch and alone alike. Images of one
    size run together. In training, the statistics of a batch normalisation are those of the images
    that run together, and the running ones are updated once for each size.
    """
    coarsest, stride = STRIDES[-1], 2 << levels.start if levels.start else 1
    cells = (geometry.image_sizes / coarsest).ceil().clamp(min=1).int().tolist()
    members: dict[tuple[int, int], list[int]] = {}
    for image, (rows, columns) in enumerate(cells):
        members.setdefault((rows, columns), []).append(image)
    height, width = x.shape[-2:]
    parts = []
    for (rows, columns), images in members.items():
        bottom, right = rows * coarsest // stride, columns * coarsest // stride
        own = x[images, :, :bottom, :right] if len(members) > 1 else x[:, :, :bottom, :right]
        maps = run(own, levels)
        parts.append(
            [
                _padded_to(m, height * stride, width * stride, level)
                for m, level in zip(maps, levels, strict=True)
            ]
        )
    order = [image for images in members.values() for image in images]
    back = torch.tensor(order, device=x.device).argsort()
    features = [torch.cat(same_level)[back] for same_level in zip(*parts, strict=True)]
    return _without_padding(features, levels, geometry)


def _padded_to(x: Tensor, height: int, width: int, level: int) -> Tensor:
    stride = 4 << level
    return F.pad(x, (0, width // stride - x.shape[3], 0, height // stride - x.shape[2]))


def _without_padding(features: list[Tensor], levels: range, geometry: Geometry) -> list[Tensor]:
    return [
        f * geometry.valid_mask(4 << level).unsqueeze(1)
        for f, level in zip(features, levels, strict=True)
    ]


_SIZES = ((64, 96), (45, 83))
_BATCH_SIZE = (128, 160)


def shows_padding(backbone: nn.Module) -> bool:
    """Tells whether padding changes what a backbone computes inside an image.

    A copy in float64 runs on small images, alone and in a larger batch, both as ``run_masked``
    does. Its scales and biases are moved away from where they start: a branch that starts at
    nearly zero would hide what it sees. A backbone that cannot run so is one that sees it.
    """
    with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
        try:
            probe = copy.deepcopy(backbone).cpu().double().eval()
            _move_small_parameters(probe)
            return any(_differs(probe, height, width) for height, width in _SIZES)
        except (RuntimeError, AssertionError, ValueError, TypeError):
            return True


def _move_small_parameters(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
        if parameter.numel() == max(parameter.shape, default=1):
            parameter.add_(0.3 * noise)
        elif not parameter.any():
            parameter.add_(0.02 * noise)


def _differs(model: nn.Module, height: int, width: int) -> bool:
    generator, levels = torch.Generator().manual_seed(0), range(4)
    image = torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64)
    mask = torch.ones(1, *_BATCH_SIZE, dtype=torch.bool)
    mask[:, :height, :width] = False
    batch = F.pad(image, (0, _BATCH_SIZE[1] - width, 0, _BATCH_SIZE[0] - height))
    alone, own = pad_batch(image, None)
    batch, geometry = pad_batch(batch, mask)
    expected = run_masked(model, alone, levels, own) if own.padded else model(alone, levels)
    found = run_masked(model, batch, levels, geometry)
    for ours, theirs in zip(found, expected, strict=True):
        inside = ours[:, :, : theirs.shape[2], : theirs.shape[3]]
        if not bool((inside - theirs).abs().max() <= 1e-8 * theirs.abs().max()):
            return True
    return False


class padding_stays_zero(TorchFunctionMode):  # noqa: N801 - used like a function
    """Within this context every convolution and pooling sees zeros in the padding.

    A padded image then gives, inside, what it gives alone: a convolution pads its input with zeros,
    and biases and normalisation would fill the padding with something else after the first layer.
    Means over the whole map (squeeze and excitation) and the statistics of a training batch
    normalisation are those of the image. Works for convolutional backbones without a change to
    them. Attention, and statistics of other kinds, still see the padding: whether a backbone does
    is found out by ``shows_padding``.

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
        if not args or not _is_map(args[0]):
            return function(*args, **kwargs)
        x, *rest = args
        if function is F.batch_norm:
            return self._batch_norm(x, *rest, **kwargs)
        name = getattr(function, "__name__", "")
        if name == "adaptive_avg_pool2d" and (*rest, *kwargs.values()) in _WHOLE_MAP:
            return self._mean(torch.mean, x, (2, 3), keepdim=True)
        if name == "mean" and _averages_cells(*rest, **kwargs):
            return self._mean(function, x, *rest, **kwargs)
        if name == "max_pool2d":  # which pads with the least value, not with zeros
            outside = self._mask(x) == 0
            out = function(x.masked_fill(outside, -torch.inf), *rest, **kwargs)
            return out.masked_fill(out == -torch.inf, 0) if isinstance(out, Tensor) else out
        if name in _CONVOLVING:
            x = x.masked_fill(self._mask(x) == 0, 0)
        return function(x, *rest, **kwargs)

    def _mean(self, mean: Callable, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Zeros add nothing to the sum, but the whole map has more cells than the image."""
        wide = widened(x)  # in half types the share of a small image would have few digits left
        mask = self._mask(wide)
        covered = mean(mask, *rest, **named)
        within = mean(wide.masked_fill(mask == 0, 0), *rest, **named)
        within = within / covered.masked_fill(covered == 0, 1)
        return within.to(named.get("dtype") or x.dtype)

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
        stride = max(round(self._pixels.shape[-1] / x.shape[-1]), 1)
        mask = self._pixels if stride == 1 else F.max_pool2d(self._pixels, stride)
        if mask.shape[-2:] != x.shape[-2:]:
            raise ValueError(
                f"a map of {tuple(x.shape[-2:])} is no whole fraction of the image "
                f"{tuple(self._pixels.shape[-2:])}: this backbone cannot take padded batches; "
                "choose images of one size, whose sides are multiples of 32"
            )
        return mask.to(x.dtype)


_CONVOLVING = ("conv2d", "avg_pool2d", "dense_conv2d")
_WHOLE_MAP = ((1,), ((1, 1),), ([1, 1],))


def _averages_cells(dim: Any = None, *_: Any, **named: Any) -> bool:
    """Whether a mean with these arguments is taken over cells, and not over channels or images."""
    dim = named.get("dim", dim)
    dims = {d % 4 for d in ((dim,) if isinstance(dim, int) else dim or ())}
    return bool(dims) and dims <= {2, 3}


def _is_map(x: object) -> bool:
    """Whether this has cells; a single one may stand for the whole image, without any padding."""
    return isinstance(x, Tensor) and x.dim() == 4 and x.shape[-2:] != (1, 1)

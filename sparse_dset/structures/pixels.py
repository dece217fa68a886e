"""Tensors that people bring: which of them are pixels, and what to do with the others."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dset.checks import check_has_values

OVERSHOOT = 0.1
"""How far a resized picture may lie outside of [0, 1]: bicubic resizing overshoots at edges."""

_CHANNELS_LAST = "its channels come last: give x.permute(2, 0, 1)"
_OTHER_SHAPES = {
    1: "grey pictures need three channels: give x.expand(3, -1, -1)",
    2: "a grey picture has a second channel of opacity: give x[:1].expand(3, -1, -1)",
    4: "a fourth channel is opacity: compose it over a background and give x[:3]",
}


def as_pixels(tensor: Tensor) -> Tensor:
    """Checks that a tensor can be a picture.

    Args:
        tensor: ``[3, H, W]``, uint8, or floating point in [0, 1].

    Returns:
        uint8 as it is, or float32 in [0, 1], from which the overshoot of a resizing is cut off.

    Raises:
        ValueError: another shape, another type, or values that cannot be pixels; the message says
            what was given and how to mend it.
    """
    check_has_values("an image tensor", tensor)
    tensor = tensor.detach().as_subclass(Tensor)
    _check_shape(tensor)
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise ValueError(
            f"an image tensor must be uint8 or float, got {tensor.dtype}: {_mend_type(tensor)}"
        )
    pixels = tensor.float()
    wrong = wrong_range(pixels)
    if wrong is not None:
        raise ValueError(wrong)
    return pixels.clamp(0.0, 1.0)


def wrong_range(images: Tensor) -> str | None:
    """Returns why floating-point values can't be pixels in [0, 1], and the mend; None: they can.

    Args:
        images: any shape, with at least one value; on a GPU, this waits for it.
    """
    low, high = (float(bound) for bound in images.detach().aminmax())
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return None
    said = f"a float image must be in [0, 1], got a minimum of {low:g} and a maximum of {high:g}"
    if not (low > -float("inf") and high < float("inf")):  # NaN compares as false too
        return f"{said}: some of its values are NaN or infinite; mend what made them"
    if low >= -OVERSHOOT and high > 4:
        scale = 255 if high <= 255 else 65535 if high <= 65535 else high
        return f"{said}; divide by {scale:g}, or give uint8"
    if low < -OVERSHOOT and low >= -1 - OVERSHOOT and high <= 1 + OVERSHOOT:
        return f"{said}; values in [-1, 1] become pixels by (x + 1) / 2"
    return (
        f"{said}: it seems to be normalised by a mean and a deviation; leave that out, as the "
        "detector does it, or undo it by x * std + mean (where white is 255, divide by 255)"
    )


def _check_shape(tensor: Tensor) -> None:
    if tensor.dim() == 3 and tensor.shape[0] == 3 and tensor.numel():
        return
    said = f"an image tensor must be [3, H, W], got {tuple(tensor.shape)}"
    mend = None
    if tensor.dim() == 4:
        mend = "for a batch, give a list of its images: list(x)"
    elif tensor.dim() == 2:
        mend = "a grey picture needs three channels: give x.expand(3, -1, -1)"
    elif tensor.dim() == 3 and tensor.numel():
        mend = _CHANNELS_LAST if tensor.shape[2] == 3 else _OTHER_SHAPES.get(tensor.shape[0])
    raise ValueError(said if mend is None else f"{said}; {mend}")


def _mend_type(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "a mask is no picture; where it is meant as one, give x.float()"
    if tensor.is_complex():
        return "complex values are no pixels"
    low, high = (int(bound) for bound in tensor.to(torch.int64).aminmax())
    if low >= 0 and high <= 255:
        return "its values fit, so give x.to(torch.uint8)"
    if low >= 0 and high <= 65535:
        return f"its values reach {high}; give x / 65535 where white is 65535"
    return f"its values are in {low}..{high}; scale them to [0, 1]"

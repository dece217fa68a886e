"""Reading pictures from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

# Pillow warns above this many pixels: such a file is more often broken or hostile than wanted.
MAX_PIXELS = 89_478_485


class ImageReadError(RuntimeError):
    """A picture is missing, truncated, too large, or not of the size its annotations say."""


def read_image(
    path: str | Path, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Reads a picture as RGB, turned upright as its EXIF orientation says.

    Args:
        path: the file; every format Pillow reads, any colour mode, 8 or 16 bits.
        size: (h, w) the annotations were drawn on. Where it is not that of the upright view but
            that of the stored one, the annotations belong to the stored view, which is returned
            (not of TIFF files, which Pillow turns itself: there the picture is refused).
        max_pixels: largest height x width accepted; Pillow itself refuses more than 178,956,970.

    Returns:
        uint8 ``[3, H, W]``.

    Raises:
        ImageReadError: naming the file and what is wrong with it.
    """
    try:
        with Image.open(path) as picture:
            _check_pixels(picture, max_pixels)
            picture.load()
            return _to_rgb(_view(picture, size))
    except Exception as error:  # Pillow's readers raise many kinds of error on a broken file
        raise ImageReadError(f"{path}: {error}") from error


def upright_tensor(picture: Image.Image) -> Tensor:
    """Returns an open picture as ``read_image`` does its file: uint8 ``[3, H, W]``.

    Raises:
        ValueError: its pixels are floating point, which have no range that is known.
    """
    return _to_rgb(ImageOps.exif_transpose(picture))


def read_size(path: str | Path) -> tuple[int, int]:
    """Reads (h, w) of the upright view from a picture's header.

    Raises:
        ImageReadError: naming the file and what is wrong with it.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            # EXIF orientations 5 to 8 lay the picture on its side; Pillow turns TIFF files itself.
            sideways = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            sideways = sideways and picture.format != "TIFF"
    except Exception as error:  # as above
        raise ImageReadError(f"{path}: {error}") from error
    return (width, height) if sideways else (height, width)


def _check_pixels(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise ValueError(
            f"{width}x{height} pixels are more than max_pixels={max_pixels}; "
            "tile the picture or raise the limit"
        )


def _view(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    upright = ImageOps.exif_transpose(picture)
    if size is None or upright.size == size[::-1]:
        return upright
    if picture.size == size[::-1]:
        return picture
    raise ValueError(
        f"the picture is {upright.width}x{upright.height} upright, "
        f"the annotations say {size[1]}x{size[0]} (width x height)"
    )


def _to_rgb(picture: Image.Image) -> Tensor:
    if picture.mode == "F":
        raise ValueError("its pixels are floating point, of no known range; save it with 8 bits")
    if picture.mode.startswith("I"):  # 16 bits of grey: Pillow would clip instead of scaling
        grey = np.asarray(picture).astype(np.int32).clip(0, 65535) // 257
        return torch.from_numpy(grey.astype(np.uint8)).expand(3, -1, -1).contiguous()
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return F.pil_to_tensor(picture.convert("RGB"))

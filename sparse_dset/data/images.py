"""Reading pictures: from files and from what Pillow has opened, always as RGB with 8 bits."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from sparse_dset.checks import check_number

_WHITE_16 = 65535
# Values of 16 bits that span less than this lose two of the eight bits that they are brought to.
_NARROW_SPAN = (_WHITE_16 + 1) // 4
# Bits of the tags of TIFF pages: a smaller version, and a mask, of another page.
_TIFF_SUBFILE, _TIFF_REDUCED_OR_MASK = 254, 1 | 4
_TIFF_SAMPLE_FORMAT, _TIFF_UNSIGNED = 339, (1,)
# What Pillow's keys of transparency are to be multiplied by, which it leaves as the file has them.
_KEY_SCALES = {"L;2": 85, "L;4": 17}


class ImageReadError(RuntimeError):
    """A picture is missing, truncated, too large, or not of the size its annotations say."""


class Notice(NamedTuple):
    """What one should know of a picture that was read.

    ``kind``: ``"frames"`` (the file holds more pictures than the one taken) or ``"range"`` (its
    values fill a small part of what its bits can hold); ``text``: a sentence that names the file.
    """

    kind: Literal["frames", "range"]
    text: str


@dataclass(frozen=True)
class ImageReader:
    """How pictures are read; upright (as their EXIF orientation says), as RGB, with 8 bits.

    Attributes:
        background: (red, green, blue) in 0..255 that transparent pixels are composed over.
        stretch: True: the values of pictures with more than 8 bits are stretched from their own
            smallest..largest to 0..255. False: from 0..65535, and other values are refused.
        max_pixels: largest height x width that is accepted, in place of Pillow's own limit; the
            default is 512 MiB of pixels.

    Raises:
        ValueError: a setting is out of its range.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    stretch: bool = False
    max_pixels: int = 178_956_970

    def __post_init__(self) -> None:
        colour = self.background
        if not isinstance(colour, Sequence) or isinstance(colour, str) or len(colour) != 3:
            raise ValueError(f"background must be [red, green, blue], got {colour!r}")
        for value in colour:
            check_number("background", value, at_least=0, at_most=255, whole=True)
        object.__setattr__(self, "background", tuple(colour))
        if not isinstance(self.stretch, bool):
            raise ValueError(f"stretch must be true or false, got {self.stretch!r}")
        check_number("max_pixels", self.max_pixels, at_least=1, whole=True)

    def read(self, path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
        """Reads a picture and warns of what ``decode`` tells of it.

        Args, returns and raises as ``decode``.
        """
        image, notices = self.decode(path, size)
        _warn_of(notices)
        return image

    def decode(
        self, path: str | Path, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, list[Notice]]:
        """Reads a picture; of a file with several frames or pages, the first.

        Args:
            path: the file; every format that Pillow reads, any colour mode, 8 or 16 bits.
            size: (h, w) the annotations were drawn on. Where it is not that of the upright view but
                that of the stored one, the annotations belong to the stored view, which is returned
                (not of TIFF files, which Pillow turns itself: there the picture is refused).

        Returns:
            uint8 ``[3, H, W]``, and what one should know of the picture.

        Raises:
            ImageReadError: naming the file and what is wrong with it.
        """
        try:
            with open(path, "rb") as file:
                picture = _opened(file)
                self._check_pixels(picture)
                told = _frames_notice(picture, path)
                image, notices = self._as_rgb(picture, str(path), size)
                return image, told + notices
        except Exception as error:  # Pillow's readers raise many kinds of error on a broken file
            raise ImageReadError(f"{path}: {error}") from error

    def convert(self, picture: Image.Image) -> Tensor:
        """Returns an open picture, the frame that it stands at, as ``read`` does its file.

        Returns:
            uint8 ``[3, H, W]``.

        Raises:
            ValueError: it has too many pixels, or values of no known range.
        """
        self._check_pixels(picture)
        name = getattr(picture, "filename", "") or type(picture).__name__
        image, notices = self._as_rgb(picture, str(name), None)
        _warn_of(notices)
        return image

    def _check_pixels(self, picture: Image.Image) -> None:
        width, height = picture.size
        if width * height > self.max_pixels:
            raise ValueError(
                f"{width}x{height} pixels are more than max_pixels={self.max_pixels}; tile the "
                f"picture, or raise the limit: data.reader.max_pixels={width * height} for data "
                f"sets, max_pixels={width * height} for predict.py, "
                f"ImageReader(max_pixels={width * height}) in Python"
            )

    def _as_rgb(
        self, picture: Image.Image, name: str, size: tuple[int, int] | None
    ) -> tuple[Tensor, list[Notice]]:
        key = _transparent_key(picture)  # before the view, whose making unpacks the pixels
        unsigned = _is_unsigned(picture)
        view = _view(picture, size)
        if view.mode == "F":
            raise ValueError(
                "its pixels are floating point, of no known range; save it with 8 bits"
            )
        if view.mode.startswith("I"):
            values = np.asarray(view).astype(np.int64)
            values = values % (1 << 32) if unsigned else values
            notices = [] if self.stretch else _range_notice(values, name)
            grey = _stretched(values) if self.stretch else _scaled(values)
            rgba = np.repeat(grey[..., None], 4, axis=2)
            rgba[..., 3] = 255 if key is None else np.where(values == key, 0, 255)
            view = Image.fromarray(rgba)
        else:
            notices = []
            if key is not None:
                view.info["transparency"] = key
        return F.pil_to_tensor(self._composed(view)), notices

    def _composed(self, picture: Image.Image) -> Image.Image:
        """The picture as RGB, its transparent pixels over the background."""
        if picture.mode == "La":  # premultiplied, which Pillow undoes only to its own kind
            picture = picture.convert("LA")
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        rgba = picture.convert("RGBA")
        below = Image.new("RGBA", rgba.size, (*self.background, 255))
        return Image.alpha_composite(below, rgba).convert("RGB")


def read_size(path: str | Path) -> tuple[int, int]:
    """Reads (h, w) of the upright view from a picture's header.

    Raises:
        ImageReadError: naming the file and what is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            picture = _opened(file)
            width, height = picture.size
            # EXIF orientations 5 to 8 lay the picture on its side; Pillow turns TIFF files itself.
            sideways = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            sideways = sideways and picture.format != "TIFF"
    except Exception as error:  # as above
        raise ImageReadError(f"{path}: {error}") from error
    return (width, height) if sideways else (height, width)


def _warn_of(notices: Sequence[Notice]) -> None:
    for notice in notices:
        warnings.warn(notice.text, stacklevel=3)


def _opened(file: IO[bytes]) -> Image.Image:
    """Opens a picture without Pillow's limit of pixels, in whose place the reader's stands.

    ``Image.open`` compares with a global number, which could be raised only for all threads and
    all libraries of the process at once. It asks the same readers in the same order.
    """
    prefix = file.read(16)
    for prepare in (Image.preinit, Image.init):  # the common readers first, as Pillow does
        prepare()
        for name in Image.ID:
            factory, accept = Image.OPEN[name]
            try:
                if accept is None or accept(prefix) is True:
                    file.seek(0)
                    return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # so a reader says that the file is not of its format
    raise UnidentifiedImageError("it is not a picture of a format that Pillow reads")


def _frames_notice(picture: Image.Image, path: str | Path) -> list[Notice]:
    count = _num_frames(picture)
    if count < 2:
        return []
    word = "pages" if picture.format == "TIFF" else "frames"
    return [
        Notice(
            "frames",
            f"{path} has {count} {word}, of which the first is taken; save the others as files of "
            "their own where they are wanted",
        )
    ]


def _num_frames(picture: Image.Image) -> int:
    """Counts the pictures of a file that are not versions of the first."""
    count = int(getattr(picture, "n_frames", 1))
    if count < 2 or picture.format == "PSD":  # whose further frames are layers of the first
        return 1
    if picture.format == "MPO":  # photos carry their previews and depth maps along
        kinds = [entry["Attribute"]["MPType"] for entry in picture.mpinfo[0xB002]]  # type: ignore[attr-defined]
        return sum(kind.startswith("Multi-Frame") for kind in kinds)
    if picture.format == "TIFF":
        subfiles = []
        for page in range(count):
            picture.seek(page)
            subfiles.append(picture.tag_v2.get(_TIFF_SUBFILE, 0))  # type: ignore[attr-defined]
        picture.seek(0)
        return sum(not subfile & _TIFF_REDUCED_OR_MASK for subfile in subfiles)
    return count


def _view(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    upright = ImageOps.exif_transpose(picture)
    if size is None or upright.size == size[::-1]:
        return upright
    if picture.size == size[::-1]:
        return picture.copy()
    raise ValueError(
        f"the picture is {upright.width}x{upright.height} upright, "
        f"the annotations say {size[1]}x{size[0]} (width x height)"
    )


def _transparent_key(picture: Image.Image) -> int | tuple[int, ...] | None:
    """The value that is transparent, of a picture in which one is, in the scale of its pixels."""
    key = picture.info.get("transparency")
    if picture.mode.startswith(("I", "L")) and isinstance(key, int):
        tiles = getattr(picture, "tile", ())  # how the file packs its pixels, until they are read
        return key * _KEY_SCALES.get(str(tiles[0][3]), 1) if tiles else key
    if picture.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        return tuple(value >> 8 for value in key)  # Pillow keeps the upper 8 of 16 bits
    return None


def _is_unsigned(picture: Image.Image) -> bool:
    """Whether a TIFF file's 32 bits are unsigned, which Pillow takes as signed."""
    tags = getattr(picture, "tag_v2", None)
    if picture.mode != "I" or tags is None:
        return False
    return bool(tags.get(_TIFF_SAMPLE_FORMAT, _TIFF_UNSIGNED) == _TIFF_UNSIGNED)


def _range_notice(values: NDArray[np.int64], name: str) -> list[Notice]:
    low, high = int(values.min()), int(values.max())
    if low == high or high - low >= _NARROW_SPAN:  # one even colour is not a lack of contrast
        return []
    return [
        Notice(
            "range",
            f"{name}: its values lie in {low}..{high}, a small part of 0..{_WHITE_16}, so that it "
            "comes out dark or without contrast; data.reader.stretch=true on the command line, or "
            "ImageReader(stretch=True), stretches each picture from its own smallest to its "
            "largest value",
        )
    ]


def _scaled(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _WHITE_16:
        raise ValueError(
            f"its values lie in {low}..{high}, outside of 0..{_WHITE_16}; save it with 8 or 16 "
            "bits, or set data.reader.stretch=true (ImageReader(stretch=True) in Python)"
        )
    return (values // 257).astype(np.uint8)


def _stretched(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    return ((values - low) * 255 // max(high - low, 1)).astype(np.uint8)

"""Captions of boxes: text that can always be drawn, and where it is drawn so that it is seen."""

from __future__ import annotations

import functools
import unicodedata
import zlib
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

SIZE = 11
_MARGIN = 2
_LONGEST = 40
"""Characters of a caption; of a longer one the start is shown, and a number that tells it apart."""


def visible_text(text: str) -> str:
    """Writes whatever the font cannot show as an escape, so that two texts never look the same.

    Line breaks, characters without a glyph, and those that are drawn as nothing or over their
    neighbour (marks, joiners, directions) become escapes as in Python, and a backslash becomes two.
    """
    escaped = "".join(_visible(character) for character in text)
    if len(escaped) <= _LONGEST:
        return escaped
    number = f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
    return f"{escaped[: _LONGEST - len(number) - 1]}…{number}"


def caption_size(text: str) -> tuple[int, int]:
    """Returns (width, height) of a caption with its margin, in pixels."""
    left, _, right, _ = font().getbbox(text, anchor="ls")
    ascent, descent = font().getmetrics()
    return int(right - min(left, 0)) + 2 * _MARGIN + 1, ascent + descent


def place(
    box: tuple[float, float, float, float], size: tuple[int, int], canvas: tuple[int, int]
) -> tuple[int, int]:
    """Returns where a caption starts: above its box where there is room, and inside the canvas.

    Args:
        box: xyxy.
        size: (width, height) of the caption, no larger than the canvas.
        canvas: (width, height).
    """
    left, top = int(box[0]), int(box[1])
    above = top - size[1]
    y = above if above >= 0 else top
    return max(0, min(left, canvas[0] - size[0])), max(0, min(y, canvas[1] - size[1]))


@functools.cache
def font() -> ImageFont.FreeTypeFont:
    """Returns the font: the one of Unicode's letters that comes with matplotlib."""
    return ImageFont.truetype(str(_font_file()), SIZE, layout_engine=ImageFont.Layout.BASIC)


def _font_file() -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(str(_font_file())).get_charmap())


def _visible(character: str) -> str:
    if character == "\\":
        return "\\\\"
    mark = unicodedata.category(character).startswith("M")
    if character.isprintable() and not mark and ord(character) in _glyphs():
        return character
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    code = ord(character)
    return named.get(character) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")

"""Draws detections and kept tokens over a picture."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from sparse_dset.engine.captions import caption_size, font, place, visible_text
from sparse_dset.models.predict import CELL, Detections

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def draw_detections(
    image: Tensor, detections: Detections, *, show_kept: bool = True
) -> Image.Image:
    """Draws boxes with names and scores; the cells that were pruned are darkened.

    A caption is never cut off: the drawing of a picture that is smaller than one of its captions
    has a black margin at the right or at the bottom.

    Args:
        image: uint8 ``[3, H, W]``, the upright image.
        detections: what ``predict`` found in it.
        show_kept: whether to darken pruned cells.
    """
    if show_kept:
        image = _darken(image, detections["kept"], detections.get("view_size"))
    shown = zip(detections["names"], detections["scores"].tolist(), strict=True)
    texts = [f"{visible_text(str(name))} {score:.2f}" for name, score in shown]
    picture = _with_room(F.to_pil_image(image.cpu()), [caption_size(text) for text in texts])
    pen = ImageDraw.Draw(picture)
    boxes = [tuple(box) for box in detections["boxes"].tolist()]
    colours = [_COLOURS[label % len(_COLOURS)] for label in detections["labels"].tolist()]
    for box, colour in zip(boxes, colours, strict=True):
        pen.rectangle(box, outline=colour, width=2)
    for box, text, colour in zip(boxes, texts, colours, strict=True):
        size = caption_size(text)
        left, top = place(box, size, picture.size)
        pen.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), fill=colour)
        pen.text((left + 2, top), text, fill="white", font=font(), anchor="la")
    return picture


def _with_room(picture: Image.Image, sizes: list[tuple[int, int]]) -> Image.Image:
    """The picture, on a larger canvas where a caption of one of these sizes would not fit."""
    width, height = (max(sides) for sides in zip(picture.size, *sizes, strict=True))
    if (width, height) == picture.size:
        return picture
    canvas = Image.new("RGB", (width, height))
    canvas.paste(picture)
    return canvas


def _darken(image: Tensor, kept: Tensor, view_size: tuple[int, int] | None) -> Tensor:
    """Darkens each pixel whose cell was pruned.

    Cells have their size in the view; the last ones may reach beyond it, so that they are narrower
    in the picture.
    """
    size = view_size or _likely_view(image, kept)
    rows, columns = (
        ((torch.arange(length) + 0.5) * (seen / length) / CELL).long().clamp(max=cells - 1)
        for length, seen, cells in zip(image.shape[-2:], size, kept.shape, strict=True)
    )
    mask = kept.cpu()[rows][:, columns]
    return (image.cpu() * torch.where(mask, 1.0, 0.45)).to(torch.uint8)


def _likely_view(image: Tensor, kept: Tensor) -> tuple[int, int]:
    """The picture's own size where the cells are of it, else the size of all cells."""
    height, width = image.shape[-2:]
    own = (-(-height // CELL), -(-width // CELL)) == tuple(kept.shape)
    return (height, width) if own else (kept.shape[0] * CELL, kept.shape[1] * CELL)

"""Draws detections and kept tokens over a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from sparse_dset.models.predict import Detections

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def draw_detections(
    image: Tensor, detections: Detections, *, show_kept: bool = True
) -> Image.Image:
    """Draws boxes with names and scores; the cells that were pruned are darkened.

    Args:
        image: uint8 ``[3, H, W]``, the upright image.
        detections: what ``predict`` found in it.
        show_kept: whether to darken pruned cells.
    """
    if show_kept:
        image = _darken(image, detections["kept"])
    picture = F.to_pil_image(image)
    pen = ImageDraw.Draw(picture)
    for box, score, label, name in zip(
        detections["boxes"].tolist(),
        detections["scores"].tolist(),
        detections["labels"].tolist(),
        detections["names"],
        strict=True,
    ):
        colour = _COLOURS[label % len(_COLOURS)]
        pen.rectangle(box, outline=colour, width=2)
        _caption(pen, box, f"{name} {score:.2f}", colour)
    return picture


def _darken(image: Tensor, kept: Tensor) -> Tensor:
    mask = F.resize(kept[None].float(), list(image.shape[-2:]), F.InterpolationMode.NEAREST)
    return (image * (0.45 + 0.55 * mask.cpu())).to(torch.uint8)


def _caption(pen: ImageDraw.ImageDraw, box: Sequence[float], text: str, colour: str) -> None:
    left, top, right, bottom = pen.textbbox((box[0], box[1]), text, anchor="lb")
    pen.rectangle((left, top, right + 2, bottom), fill=colour)
    pen.text((box[0] + 1, box[1]), text, fill="white", anchor="lb")

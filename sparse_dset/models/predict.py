"""From picture files to detections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from typing_extensions import NotRequired

from sparse_dset.checks import check_number
from sparse_dset.models.evaluation_mode import evaluation
from sparse_dset.models.postprocess import SELECTED, select_detections
from sparse_dset.structures.geometry import pad_images
from sparse_dset.structures.pixels import as_pixels

if TYPE_CHECKING:
    from sparse_dset.models.detector import Detector

Picture = str | Path | Image.Image | Tensor
CELL = 32
"""Pixels, as the detector sees a picture, of a side of the cells that ``kept`` tells of."""


class PictureView(Protocol):
    """How a detector sees pictures, see ``data.view.View``."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    def with_size(self, size: Sequence[int]) -> PictureView:
        """Returns the view with another (height, width)."""

    def read(self, picture: str | Path | Image.Image) -> Tensor:
        """Returns the pixels of a picture, uint8 ``[3, H, W]``."""

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size, without padding, that a picture of height x width is resized to."""

    def resized(self, image: Tensor) -> Tensor:
        """Returns a picture ``[3, H, W]``, uint8 or float, in its size without padding."""


class Detections(TypedDict):
    """What was found in one image, best first.

    ``boxes`` float32 ``[N, 4]`` xyxy in pixels of the (upright) image, ``scores`` float32 ``[N]``,
    ``labels`` int64 ``[N]``, ``names`` their class names; ``kept`` bool ``[H, W]``, the stride-32
    cells that were kept, of the image as the detector sees it: ``view_size`` is its (height, width)
    there in pixels, without padding, so that the last row and column of cells may reach beyond it.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]
    kept: Tensor
    view_size: NotRequired[tuple[int, int]]


@torch.no_grad()
def predict(
    model: Detector,
    images: Sequence[Picture],
    threshold: float = 0.3,
    batch_size: int = 8,
    *,
    max_detections: int = SELECTED,
    **options: Any,
) -> list[Detections]:
    """Detects objects in pictures of any size, which the detector sees as ``model.view`` says.

    That is how validation saw them: what is found is what an evaluation finds.

    Args:
        model: the detector; it is left in the mode it came in.
        images: paths, PIL images, or tensors ``[3, H, W]`` (uint8, or float in [0, 1]).
        threshold: lowest score, in [0, 1].
        batch_size: images per forward pass.
        max_detections: most detections of a picture; of more, the best ones.
        options: keyword arguments of the forward pass, e.g. ``execution`` or ``keep_ratio``.

    Raises:
        ImageReadError: a file cannot be read; the message names it.
        ValueError: a setting is out of range, ``images`` is a single path, or a tensor is no
            image (see ``structures.pixels.as_pixels``).
        RuntimeError: a score or a box is not a number.
    """
    if isinstance(images, (str, Path, Image.Image, Tensor)):
        raise ValueError("predict takes a list of images; write predict([image])")
    check_number("threshold", threshold, at_least=0, at_most=1)
    for name, value in (("batch_size", batch_size), ("max_detections", max_detections)):
        check_number(name, value, at_least=1, whole=True)
    device = next(model.parameters()).device
    with evaluation(model) as network:
        return [
            found
            for start in range(0, len(images), batch_size)
            for found in _detect(
                network,
                images[start : start + batch_size],
                threshold,
                max_detections,
                device,
                options,
            )
        ]


def _detect(
    model: Detector,
    pictures: Sequence[Picture],
    threshold: float,
    max_detections: int,
    device: torch.device,
    options: dict[str, Any],
) -> Iterator[Detections]:
    tensors = [_to_tensor(picture, model.view) for picture in pictures]
    sizes = [(t.shape[-2], t.shape[-1]) for t in tensors]
    seen = [model.view.size_of(*size) for size in sizes]
    resized = [F.to_dtype(model.view.resized(t), torch.float32, scale=True) for t in tensors]
    images, padding_mask = pad_images([image.to(device) for image in resized])
    if padding_mask is not None:
        padding_mask = padding_mask.to(device)
    out = model(images, padding_mask=padding_mask, **options)
    selected = select_detections(
        out.pred_logits, out.pred_boxes, sizes, max_detections, out.query_mask
    )
    for picture, size, one, kept in zip(pictures, seen, selected, out.kept[-1], strict=True):
        if not (one["scores"].isfinite().all() and one["boxes"].isfinite().all()):
            what = picture if isinstance(picture, (str, Path)) else type(picture).__name__
            raise RuntimeError(
                f"scores or boxes of {what} are not finite: its pixels or the weights are not"
            )
        count = int((one["scores"] >= threshold).sum())
        labels = one["labels"][:count]
        yield Detections(
            boxes=one["boxes"][:count],
            scores=one["scores"][:count],
            labels=labels,
            names=[model.class_names[label] for label in labels.tolist()],
            kept=kept[: -(-size[0] // CELL), : -(-size[1] // CELL)],
            view_size=size,
        )


def _to_tensor(picture: Picture, view: PictureView) -> Tensor:
    if isinstance(picture, str | Path | Image.Image):
        return view.read(picture)
    if not isinstance(picture, Tensor):
        raise ValueError(
            f"an image must be a path, a PIL image or a tensor, got a {type(picture).__name__}"
        )
    return as_pixels(picture)

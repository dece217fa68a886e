"""How a detector sees a picture: one description for validation, prediction and measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from sparse_dset.checks import check_size
from sparse_dset.data.images import ImageReader

_TARGETS = ("sparse_dset.data.view.View", "sparse_dset.data.transforms.eval_transforms")
MODES = ("stretch", "letterbox")


@dataclass(frozen=True)
class View:
    """How a picture is read and brought to the size that the network takes.

    It belongs to the detector, and so to its checkpoint. The mean and the deviation by which pixels
    are normalised are the backbone's own settings (``model.backbone.mean``, ``std``), and padding
    is that of ``data.collate``; neither is said again here.

    Attributes:
        size: (height, width) in pixels; an int for a square.
        mode: ``"stretch"`` resizes every picture to exactly ``size``; ``"letterbox"`` keeps the
            proportions and resizes to the largest size that fits within ``size``. What is missing
            is padding, at the right and at the bottom, which the network leaves out.
        reader: how files become pixels.

    Raises:
        ValueError: an unknown mode, or a size that is none.
    """

    size: tuple[int, int]
    mode: Literal["stretch", "letterbox"] = "stretch"
    reader: ImageReader = ImageReader()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        check_size("size", size)
        object.__setattr__(self, "size", tuple(size))
        if self.mode not in MODES:
            raise ValueError(f"mode must be 'stretch' or 'letterbox', got {self.mode!r}")

    def __call__(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Resizes a picture and its boxes, as a transform of ``CocoDetection``.

        Args:
            image: ``tv_tensors.Image`` ``[3, H, W]``.
            target: with ``boxes``, a ``tv_tensors.BoundingBoxes``; the rest stays as it is.
        """
        size = list(self.size_of(*image.shape[-2:]))
        return F.resize(image, size), {**target, "boxes": F.resize(target["boxes"], size)}

    def __str__(self) -> str:
        height, width = self.size
        verb = "stretched to" if self.mode == "stretch" else "fitted into"
        read = "" if self.reader == ImageReader() else f", read by {self.reader}"
        return f"{verb} {height}x{width} (height x width){read}"

    def read(self, picture: str | Path | Image.Image) -> Tensor:
        """Returns the pixels of a picture, uint8 ``[3, H, W]``, in its own size.

        Raises:
            ImageReadError: a file cannot be read; the message names it.
        """
        convert = self.reader.convert if isinstance(picture, Image.Image) else self.reader.read
        return convert(picture)  # type: ignore[arg-type]

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size, without padding, that a picture of height x width is resized to."""
        return self.size if self.mode == "stretch" else fitted_size((height, width), self.size)

    def resized(self, image: Tensor) -> Tensor:
        """Returns a picture ``[3, H, W]``, uint8 or float, in its size without padding."""
        return F.resize(image, list(self.size_of(*image.shape[-2:])))

    def with_size(self, size: Sequence[int]) -> View:
        """Returns the view with another (height, width)."""
        return replace(self, size=tuple(size))  # type: ignore[arg-type]

    def as_config(self) -> dict[str, Any]:
        """Returns the configuration that makes it: plain values, as a checkpoint holds them."""
        settings = {"size": list(self.size), "mode": self.mode}
        return {"_target_": _TARGETS[0], **settings, "reader": reader_config(self.reader)}


def fitted_size(
    size: tuple[int, int], limit: tuple[int, int], largest_scale: float = float("inf")
) -> tuple[int, int]:
    """Returns the largest (height, width) of the proportions of ``size`` that fits in ``limit``.

    Args:
        size: (height, width) of a picture.
        limit: (height, width) that holds it.
        largest_scale: most that it is enlarged.
    """
    scale = min(limit[0] / size[0], limit[1] / size[1], largest_scale)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def reader_config(reader: ImageReader) -> dict[str, Any]:
    """Returns the configuration that makes a reader: plain values."""
    settings = {**asdict(reader), "background": list(reader.background)}
    return {"_target_": "sparse_dset.data.images.ImageReader", **settings}


def recorded_view(val: Mapping[str, Any] | None) -> View | None:
    """Returns the view that a recorded configuration of validation data describes, if any."""
    transforms = (val or {}).get("transforms") or {}
    if transforms.get("_target_") not in _TARGETS:
        return None
    mode = transforms.get("mode", "stretch")
    settings = {**((val or {}).get("reader") or {})}
    settings.pop("_target_", None)
    reader = ImageReader(**settings)
    return View(transforms["size"], "stretch" if mode == "fixed" else mode, reader)


def view_of_detector(detector: Any) -> View:
    """Returns the view that a detector has.

    Raises:
        ValueError: it has another kind of view, which a checkpoint could not say of itself.
    """
    if isinstance(detector.view, View):
        return detector.view
    raise ValueError(f"model.view must be a sparse_dset.data.view.View, got {detector.view!r}")


def view_of(dataset: Any) -> View:
    """Returns the view that a data set gives.

    Raises:
        ValueError: its transforms are something else, which a checkpoint could not say of itself.
    """
    transforms = getattr(dataset, "transforms", None)
    if isinstance(transforms, View):  # which resizes; what reads is the data set
        return replace(transforms, reader=getattr(dataset, "reader", transforms.reader))
    raise ValueError(
        "data.val.transforms must be a sparse_dset.data.view.View of a size and a mode (stretch or "
        f"letterbox), got {transforms!r}: predict and whatever measures a checkpoint must see "
        "pictures as its validation did, so the checkpoint holds this description"
    )

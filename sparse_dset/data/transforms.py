"""Random and fixed views of images: torchvision v2 pipelines, all random numbers from torch.

Images are uint8 ``tv_tensors.Image`` ``[3, H, W]``; targets hold ``boxes``
(``tv_tensors.BoundingBoxes``, xyxy in pixels) and ``labels``, as ``CocoDetection.load`` returns
them. The window that training sees is cut out of the stored pixels before anything else touches
them (only SSD's zoom and crop come first, on photos of bounded size), and colours change on the
window alone: what costs time costs it on few pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from sparse_dset.checks import check_list, check_number, check_size
from sparse_dset.data.view import View, fitted_size

if TYPE_CHECKING:
    from sparse_dset.data.coco import CocoDetection, Target

# A box is dropped where less than this share of its area is left in the window.
MIN_VISIBLE = 0.35


def train_transforms(
    size: int | Sequence[int],
    *,
    crop: int | Sequence[int] | None = None,
    scale_jitter: Sequence[float] = (1.0, 1.0),
    keep_aspect: bool = False,
    rotate90: bool = False,
    flip: bool = True,
    photometric: bool = True,
    zoom_out: float = 0.0,
    iou_crop: float = 0.0,
) -> v2.Compose:
    """Random views for training; every image comes out with the size of ``crop``.

    For scenes seen from above: ``scale_jitter=(0.6, 1.6), rotate90=True, crop=320``. For photos, as
    RT-DETR does: ``zoom_out=0.5, iou_crop=0.8``.

    Args:
        size: (h, w) the whole image is resized to, before the jitter; an int for a square. The
            same as in evaluation, so that objects keep their scale.
        crop: (h, w) of the random window cut from the resized image, padded with zeros where the
            image is smaller; default ``size``.
        scale_jitter: the range of a random factor on ``size``, evenly spread over its logarithm.
        keep_aspect: fit the image into ``size`` instead of stretching it.
        rotate90: turn by a random multiple of 90 degrees (and flip upside down with ``flip``).
        flip: mirror half of the images.
        photometric: vary brightness, contrast, saturation and hue.
        zoom_out: probability of laying the image on an up to four times larger canvas (SSD).
        iou_crop: probability of a crop that overlaps objects by a random minimum (SSD).
    """
    steps: list[torch.nn.Module] = []
    if zoom_out or iou_crop:  # which make images of up to 16 times the pixels that they are given
        steps.append(Letterbox([2 * side for side in _size(size)], enlarges=False))
    if zoom_out:
        steps.append(v2.RandomZoomOut(p=_probability(zoom_out, "zoom_out")))
    if iou_crop:
        crop_objects = v2.Compose([_CropObjects(), v2.SanitizeBoundingBoxes()])
        steps.append(v2.RandomApply([crop_objects], p=_probability(iou_crop, "iou_crop")))
    steps.append(
        RandomWindow(
            size,
            crop=crop,
            scale_jitter=scale_jitter,
            keep_aspect=keep_aspect,
            rotate90=rotate90,
        )
    )
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if photometric:
        steps.append(RandomColour())
    return v2.Compose(steps)


def eval_transforms(
    size: int | Sequence[int], mode: Literal["fixed", "stretch", "letterbox"] = "stretch"
) -> View:
    """The view for evaluation; see ``View``. ``"fixed"`` is an older word for ``"stretch"``."""
    return View(size, "stretch" if mode == "fixed" else mode)  # type: ignore[arg-type]


class Letterbox(v2.Transform):
    """Resizes to the largest size that fits within (h, w) and keeps the aspect.

    Args:
        size: (h, w); an int for a square.
        enlarges: False leaves an image that fits already as it is.
    """

    def __init__(self, size: int | Sequence[int], *, enlarges: bool = True) -> None:
        super().__init__()
        self.size = _size(size)
        self.largest = math.inf if enlarges else 1.0

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return {"size": list(fitted_size((height, width), self.size, self.largest))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, **params)


class _CropObjects(torch.nn.Module):
    """SSD's crop; images with a side too short for its smallest window stay whole."""

    SHORTEST = 4

    def __init__(self) -> None:
        super().__init__()
        self.crop = v2.RandomIoUCrop()

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        if min(image.shape[-2:]) < self.SHORTEST:
            return image, target
        return self.crop(image, target)


class RandomWindow(v2.Transform):
    """Resizes by a random factor, turns and crops, in one pass over the pixels that are kept.

    Arguments as in ``train_transforms``. Boxes of which less than ``MIN_VISIBLE`` is left are
    dropped.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        crop: int | Sequence[int] | None = None,
        scale_jitter: Sequence[float] = (1.0, 1.0),
        keep_aspect: bool = False,
        rotate90: bool = False,
    ) -> None:
        super().__init__()
        self.size = _size(size)
        self.crop = self.size if crop is None else _size(crop, "crop")
        check_list("scale_jitter", scale_jitter)
        if len(scale_jitter) != 2 or not 0 < scale_jitter[0] <= scale_jitter[1]:
            raise ValueError(
                f"scale_jitter must be [low, high], 0 < low <= high, got {list(scale_jitter)}"
            )
        self.scale_jitter = (float(scale_jitter[0]), float(scale_jitter[1]))
        self.keep_aspect = keep_aspect
        self.rotate90 = rotate90

    def forward(
        self, image: Tensor, target: dict[str, Any]
    ) -> tuple[tv_tensors.Image, dict[str, Any]]:
        """Returns the window, uint8 ``[3, *crop]``, and the boxes in it."""
        quarter_turns = _randint(0, 3) if self.rotate90 else 0
        # The window is turned after it is cut, so its sides are swapped before.
        out = self.crop if quarter_turns % 2 == 0 else self.crop[::-1]
        height, width = image.shape[-2:]
        scale_y, scale_x = self._scales(height, width)
        window = (max(1, round(out[0] / scale_y)), max(1, round(out[1] / scale_x)))
        top, left = _random_offset(height, window[0]), _random_offset(width, window[1])
        image, target = crop_sample(image, target, top, left, *window)
        image, boxes = F.resize(image, list(out)), F.resize(target["boxes"], list(out))
        image, boxes = _turn(image, boxes, quarter_turns)
        return image, {**target, "boxes": boxes}

    def _scales(self, height: int, width: int) -> tuple[float, float]:
        scale_y, scale_x = self.size[0] / height, self.size[1] / width
        if self.keep_aspect:
            scale_y = scale_x = min(scale_y, scale_x)
        low, high = (math.log(bound) for bound in self.scale_jitter)
        jitter = math.exp(_uniform(low, high))
        return scale_y * jitter, scale_x * jitter


class RandomColour(v2.Transform):
    """Varies brightness, contrast, saturation and hue by one 3x4 matrix on RGB.

    All four are linear (hue as a rotation around the grey axis), so that one product replaces the
    passes over the image and the way to HSV and back.

    Args:
        brightness: largest offset, as a share of white.
        contrast: largest relative change of the distance from mid-grey.
        saturation: largest relative change of the distance from the pixel's grey.
        hue: largest turn of the colour circle, in turns.
    """

    def __init__(
        self,
        brightness: float = 0.15,
        contrast: float = 0.3,
        saturation: float = 0.4,
        hue: float = 0.03,
    ) -> None:
        super().__init__()
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        contrast = 1 + _uniform(-self.contrast, self.contrast)
        saturation = 1 + _uniform(-self.saturation, self.saturation)
        hue = _hue_rotation(_uniform(-self.hue, self.hue) * 2 * math.pi)
        grey = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
        matrix = contrast * (saturation * hue + (1 - saturation) * grey @ hue)
        offset = 255 * (_uniform(-self.brightness, self.brightness) + 0.5 * (1 - contrast))
        return {"matrix": matrix, "offset": torch.full((3, 1), offset)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        pixels = inpt.as_subclass(Tensor).flatten(1).float()
        colours = torch.addmm(params["offset"], params["matrix"], pixels)
        return tv_tensors.Image(colours.clamp_(0, 255).to(torch.uint8).view(inpt.shape))


class Mosaic(Dataset[tuple[Tensor, "Target"]]):
    """Joins windows of four images of a data set to one image (YOLOv4).

    The four meet in a random point. Windows are cut at the images' own scale, around a random
    object where there is one, so that the joined image holds more objects than a single one.

    Args:
        dataset: where images come from; its transforms are applied to the joined image.
        size: (h, w) of the joined image in pixels; an int for a square.
        probability: of joining; otherwise the sample is the data set's own.
    """

    def __init__(
        self, dataset: CocoDetection, size: int | Sequence[int], probability: float = 0.5
    ) -> None:
        self.dataset = dataset
        self.size = _size(size)
        self.probability = _probability(probability, "probability")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Returns a sample as the data set does; a joined one has the id of image ``index``."""
        if _uniform(0, 1) >= self.probability:
            return self.dataset[index]
        others = torch.randint(len(self.dataset), (3,)).tolist()
        return self.dataset.prepare(*self._join([index, *others]))

    def _join(self, indices: Sequence[int]) -> tuple[tv_tensors.Image, dict[str, Any]]:
        height, width = self.size
        middle_y = _randint(height // 4, height - height // 4)
        middle_x = _randint(width // 4, width - width // 4)
        places = [
            (y, x)
            for y in ((0, middle_y), (middle_y, height))
            for x in ((0, middle_x), (middle_x, width))
        ]
        image = torch.empty((3, height, width), dtype=torch.uint8)
        boxes, labels = [], []
        for index, ((top, bottom), (left, right)) in zip(indices, places, strict=True):
            tile, target = _object_window(*self.dataset.load(index), bottom - top, right - left)
            image[:, top:bottom, left:right] = tile
            boxes.append(target["boxes"].as_subclass(Tensor) + torch.tensor([left, top] * 2))
            labels.append(target["labels"])
        return tv_tensors.Image(image), {
            "boxes": tv_tensors.BoundingBoxes(
                torch.cat(boxes), format="XYXY", canvas_size=self.size
            ),
            "labels": torch.cat(labels),
            "image_id": self.dataset.records[indices[0]].image_id,
            "orig_size": self.size,
        }


def crop_sample(
    image: Tensor, target: dict[str, Any], top: int, left: int, height: int, width: int
) -> tuple[tv_tensors.Image, dict[str, Any]]:
    """Cuts a window out of an image; what lies outside of the image is zero.

    Boxes are clipped to the window, and dropped with their labels where less than ``MIN_VISIBLE``
    of their area is left.
    """
    boxes = target["boxes"].as_subclass(Tensor) - torch.tensor([left, top] * 2)
    limit = torch.tensor([width, height] * 2)
    clipped = torch.minimum(boxes.clamp(min=0), limit)
    kept = _area(clipped) >= MIN_VISIBLE * _area(boxes)
    cut = F.crop(image, top, left, height, width)
    return tv_tensors.wrap(cut, like=image), {
        **target,
        "boxes": tv_tensors.BoundingBoxes(
            clipped[kept], format="XYXY", canvas_size=(height, width)
        ),
        "labels": target["labels"][kept],
    }


def _object_window(
    image: Tensor, target: dict[str, Any], height: int, width: int
) -> tuple[tv_tensors.Image, dict[str, Any]]:
    """A random window that holds the centre of a random object, or any window without objects."""
    boxes = target["boxes"].as_subclass(Tensor)
    if len(boxes) == 0:
        top, left = _random_offset(image.shape[-2], height), _random_offset(image.shape[-1], width)
    else:
        x1, y1, x2, y2 = boxes[_randint(0, len(boxes) - 1)].tolist()
        top = _offset_around((y1 + y2) / 2, image.shape[-2], height)
        left = _offset_around((x1 + x2) / 2, image.shape[-1], width)
    return crop_sample(image, target, top, left, height, width)


def _offset_around(centre: float, length: int, window: int) -> int:
    offset = int(centre) - _randint(0, window - 1)
    low, high = sorted((0, length - window))
    return min(max(offset, low), high)


def _random_offset(length: int, window: int) -> int:
    """Where a window starts: inside the image, or around it where the image is smaller."""
    low, high = sorted((0, length - window))
    return _randint(low, high)


def _turn(
    image: Tensor, boxes: tv_tensors.BoundingBoxes, quarter_turns: int
) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
    """Turns image and boxes counter-clockwise by multiples of 90 degrees."""
    corners = boxes.as_subclass(Tensor)
    height, width = image.shape[-2:]
    for _ in range(quarter_turns):
        x1, y1, x2, y2 = corners.unbind(dim=1)
        corners = torch.stack([y1, width - x2, y2, width - x1], dim=1)
        height, width = width, height
    turned = torch.rot90(image.as_subclass(Tensor), quarter_turns, dims=(1, 2))
    return tv_tensors.Image(turned), tv_tensors.BoundingBoxes(
        corners, format="XYXY", canvas_size=(height, width)
    )


def _hue_rotation(angle: float) -> Tensor:
    """Rotation by ``angle`` radians around the grey axis of RGB: ``[3, 3]`` (Rodrigues)."""
    axis = 1 / math.sqrt(3)
    cross = axis * torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return torch.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _randint(low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, ()).item())


def _size(size: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else size
    check_size(name, pair)
    return pair[0], pair[1]


def _probability(value: float, name: str) -> float:
    check_number(f"{name} (a probability)", value, at_least=0, at_most=1)
    return float(value)

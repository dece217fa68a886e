"""Detection data sets in COCO's format, checked when they are loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from sparse_dset.data.annotations import (
    ImageRecord,
    build_records,
    listed,
    read_annotations,
    read_categories,
    read_images,
    read_stated_size,
)
from sparse_dset.data.images import ImageReader, ImageReadError, Notice, read_size
from sparse_dset.data.locate import locate_pictures
from sparse_dset.paths import expand_home


class Target(TypedDict):
    """What is known about one image.

    Keys:
        labels: int64 ``[G]`` in 0..K-1.
        boxes: float32 ``[G, 4]``, cxcywh in [0, 1] of the image's own (unpadded) size.
        image_id: the data set's id.
        size: (h, w) of the image as it enters the model, without padding.
        orig_size: (h, w) of the file.
    """

    labels: Tensor
    boxes: Tensor
    image_id: int
    size: tuple[int, int]
    orig_size: tuple[int, int]


class CocoDetection(Dataset[tuple[Tensor, Target]]):
    """Images and boxes of a COCO annotation file.

    Category ids are mapped to labels 0..K-1 in the order of the ids. Images without boxes are
    kept. Boxes are clipped to their image; those that are not finite or have no area are dropped
    with a warning that counts them by reason, and boxes that are probably not
    ``[x, y, width, height]`` in pixels are warned of. A box that is missing is that of the polygon
    or mask. ``area``, ``iscrowd``, ``info`` and the images' sizes may be absent, and file names
    may be written with backslashes.

    Args:
        root: the folder that the images' file names start from.
        annotations: the json file.
        transforms: takes and returns ``(image, target)``, where the image is a uint8
            ``tv_tensors.Image`` and the target holds ``boxes`` (``tv_tensors.BoundingBoxes``,
            xyxy pixels), ``labels``, ``image_id`` and ``orig_size``.
        num_classes: the model's number of classes, at least K; default K.
        drop_root_category: leave out a category that is the supercategory of all others, as some
            tools export it; it must have no objects.
        cache: decode every picture now and keep it in memory (3 bytes a pixel), for machines
            whose processors are slower than the training.
        on_error: what becomes of a picture that cannot be read: ``"raise"`` when it is asked for,
            or ``"skip"``: every picture is decoded once now, and those that fail are left out,
            listed in ``skipped`` and warned of.
        reader: how pictures are read, e.g. ``ImageReader(max_pixels=...)``.

    Attributes:
        records: the images, in the file's order, without those skipped.
        category_ids: the file's category id of each label.
        class_names: the name of each label, unique.
        num_classes: the number of classes a model needs.
        skipped: why a picture was skipped, by image id.

    Raises:
        ValueError: the file is not a COCO detection file, or contradicts itself (ids that repeat,
            are not numbers or refer to nothing), has more categories than ``num_classes``, or has
            boxes of which none can be used.
        ImageReadError: a picture is not there or cannot be read; names the file and the image id.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path,
        transforms: Callable[[Tensor, dict], tuple[Tensor, dict]] | None = None,
        *,
        num_classes: int | None = None,
        drop_root_category: bool = False,
        cache: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        reader: ImageReader = ImageReader(),  # noqa: B008  (frozen)
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.root = Path(expand_home(root))
        self.annotations = Path(expand_home(annotations))
        self.transforms = transforms
        self.reader = reader
        self._told: set[str] = set()
        self.skipped: dict[int, str] = {}
        content = read_annotations(self.annotations)
        self.category_ids, self.class_names = read_categories(
            content, self.annotations, drop_root_category
        )
        self.num_classes = self._checked_num_classes(num_classes)
        self.records = self._read_records(content, skip=on_error == "skip")
        self._images: list[Tensor] | None = None
        if cache or on_error == "skip":
            images = self._decode_all(keep=cache, skip=on_error == "skip")
            self._images = images if cache else None
        if self.skipped:
            warnings.warn(
                f"{self.annotations}: {len(self.skipped)} images are skipped because they cannot "
                f"be read: {listed(self.skipped)}",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Returns the transformed image, float32 ``[3, H, W]`` in [0, 1], and its target."""
        return self.prepare(*self.load(index))

    @property
    def image_ids(self) -> list[int]:
        """The ids of the images, in order."""
        return [record.image_id for record in self.records]

    def load(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        """Returns image and target as the file has them: what ``transforms`` is given."""
        record = self.records[index]
        if self._images is None:
            image, notices = self._decode(record)
            self._tell(record.image_id, notices)
        else:
            image = self._images[index]
        boxes = record.boxes[~record.crowd].float()
        return tv_tensors.Image(image), {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=record.size),
            "labels": record.labels[~record.crowd],
            "image_id": record.image_id,
            "orig_size": record.size,
        }

    def prepare(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, Target]:
        """Transforms what ``load`` returned and brings it to the form the model takes."""
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        height, width = image.shape[-2:]
        boxes = target["boxes"].as_subclass(Tensor) / torch.tensor([width, height] * 2)
        boxes = box_convert(boxes.clamp(0, 1), "xyxy", "cxcywh")
        seen = (boxes[:, 2:] > 0).all(dim=1)
        pixels = F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
        return pixels.contiguous(), Target(
            labels=target["labels"][seen],
            boxes=boxes[seen],
            image_id=target["image_id"],
            size=(height, width),
            orig_size=target["orig_size"],
        )

    def _checked_num_classes(self, num_classes: int | None) -> int:
        found = len(self.category_ids)
        if num_classes is not None and num_classes < found:
            raise ValueError(
                f"{self.annotations} has {found} categories, but num_classes={num_classes}; "
                f"set num_classes to {found} or more"
            )
        return found if num_classes is None else num_classes

    def _read_records(self, content: Mapping[str, Any], skip: bool) -> list[ImageRecord]:
        entries = read_images(content, self.annotations)
        names = {image_id: str(entry["file_name"]) for image_id, entry in entries.items()}
        paths, missing = locate_pictures(self.root, names)
        if missing and not skip:
            self._refuse(missing, len(paths))
        if len(missing) == len(paths):
            raise ImageReadError(
                f"{self.annotations}: no picture can be read: {listed(missing.values(), 3)}"
            )
        self.skipped.update(missing)
        images = {}
        for image_id, path in paths.items():
            if image_id in missing:
                continue
            try:
                images[image_id] = path, read_stated_size(entries[image_id]) or read_size(path)
            except ImageReadError as error:
                if not skip:
                    raise ImageReadError(f"image {image_id}: {error}") from error
                self.skipped[image_id] = str(error)
        return build_records(content, images, self.category_ids, self.annotations)

    def _refuse(self, missing: Mapping[int, str], count: int) -> None:
        first, reason = next(iter(missing.items()))
        more = ""
        if len(missing) > 1:
            more = f"; so are those of the images {listed(missing)}: {len(missing)} of {count}"
        raise ImageReadError(
            f"{self.annotations}: image {first}: {reason}{more}. on_error='skip' leaves out what "
            "is not there (data.on_error=skip on the command line)"
        )

    def _decode(self, record: ImageRecord) -> tuple[Tensor, list[Notice]]:
        try:
            return self.reader.decode(record.path, record.size)
        except ImageReadError as error:
            raise ImageReadError(f"image {record.image_id}: {error}") from error

    def _tell(self, image_id: int, notices: Sequence[Notice]) -> None:
        """Warns of what pictures are like, once for each kind: a whole data set may be so."""
        for kind, text in notices:
            if kind not in self._told:
                self._told.add(kind)
                warnings.warn(
                    f"image {image_id}: {text}. Further pictures of this data set that are so are "
                    "not told of",
                    stacklevel=3,
                )

    def _decode_all(self, keep: bool, skip: bool) -> list[Tensor]:
        def attempt(record: ImageRecord) -> tuple[Tensor, list[Notice]] | ImageReadError:
            try:
                image, notices = self._decode(record)
            except ImageReadError as error:
                return error
            return image if keep else image.new_empty(0), notices

        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding Python's lock
            results = list(pool.map(attempt, self.records))
        records, images = [], []
        for record, result in zip(self.records, results, strict=True):
            if not isinstance(result, ImageReadError):
                records.append(record)
                images.append(result[0])
                self._tell(record.image_id, result[1])
            elif skip:
                self.skipped[record.image_id] = str(result)
            else:
                raise result
        if not records:
            raise ImageReadError(
                f"{self.annotations}: no picture can be read: {listed(self.skipped.values(), 3)}"
            )
        self.records = records
        return images

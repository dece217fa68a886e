"""COCO's average precision of a detector."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from sparse_dset.checks import check_number
from sparse_dset.data.coco import CocoDetection, ImageRecord

MAX_DETECTIONS = 100
"""COCO's cap: how many detections count in an image, for each class."""


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one image: scores [Q], labels [Q], boxes [Q, 4] xyxy in its pixels."""

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


class CocoEvaluator:
    """Collects the detections of every image of a data set and scores them as COCO does.

    An image counts once, however often a sampler repeats it: its first detections stay.

    Args:
        dataset: the ground truth.
        max_detections: how many detections of a class count in an image, the best ones; COCO's own
            numbers, which others publish, are of 100.

    Raises:
        ValueError: ``max_detections`` is below 1.
    """

    def __init__(self, dataset: CocoDetection, max_detections: int = MAX_DETECTIONS) -> None:
        check_number("max_detections", max_detections, at_least=1, whole=True)
        self.max_detections = max_detections
        self._records = {record.image_id: record for record in dataset.records}
        self._category_ids = dataset.category_ids
        self._class_names = dataset.class_names
        self._num_classes = dataset.num_classes
        self._num_skipped = len(dataset.skipped)
        self._detections: dict[int, ImageDetections] = {}

    def update(self, detections: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Adds the detections of some images.

        Args:
            detections: by image id, as ``select_detections`` returns them: ``scores`` [Q],
                ``labels`` int [Q] in 0..num_classes-1 and ``boxes`` [Q, 4], xyxy in pixels of the
                original image; Q may be 0. Classes the data set lacks count for nothing.

        Raises:
            ValueError: an image the data set lacks, shapes that disagree, a label out of range, or
                a score or box that is not finite or is inside out. Names the image.
        """
        for image_id, found in detections.items():
            if image_id not in self._records:
                raise ValueError(f"image {image_id} is not one of the data set's images")
            self._detections.setdefault(image_id, _checked(image_id, found, self._num_classes))

    def summarize(self, *, partial: bool = False) -> dict[str, float]:
        """Scores what was collected.

        Args:
            partial: score the images that were added, and tell ``num_missing`` in the result.

        Returns:
            ``AP`` (over IoU 0.50:0.95), ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``AR100``
            (``AR`` and the cap on detections),
            ``AP/<class>`` and ``AP50/<class>`` in [0, 1], NaN where no object is to be found;
            ``num_images`` that were scored, ``num_skipped`` that could not be read, and
            ``num_missing`` that were not added.

        Raises:
            RuntimeError: images were not added and ``partial`` is not set.
        """
        missing = self._missing(partial)
        if self._num_skipped:
            warnings.warn(
                f"AP leaves out {self._num_skipped} images that could not be read", stacklevel=2
            )
        evaluation = self._evaluate()
        return {
            **_summary(evaluation.eval, self._class_names, self.max_detections),
            "num_images": float(len(self._detections)),
            "num_skipped": float(self._num_skipped),
            "num_missing": float(len(missing)),
        }

    def bootstrap(self, count: int, seed: int = 0) -> dict[str, list[float]]:
        """Scores samples of the images, drawn with replacement: how much luck is in an AP.

        Two detectors' numbers of the same seed come from the same samples, image by image, so
        their differences are paired.

        Args:
            count: samples.
            seed: of the draws.

        Returns:
            ``AP`` and ``AP/<class>``, a value per sample.

        Raises:
            RuntimeError: images were not added.
        """
        self._missing(partial=False)
        evaluation = self._evaluate()
        # One entry per class, area and image, in this order.
        num_areas, num_images = len(evaluation.params.areaRng), len(self._detections)
        entries = np.array(evaluation.evalImgs, dtype=object).reshape(-1, num_areas, num_images)
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation._paramsEval = copy.deepcopy(evaluation.params)
        draw = np.random.default_rng(seed)
        samples: dict[str, list[float]] = {}
        for _ in range(count):
            images = draw.integers(num_images, size=num_images)
            evaluation.evalImgs = entries[:, 0, images].ravel().tolist()
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation.accumulate()
            best = evaluation.eval["precision"][..., 0, -1]
            samples.setdefault("AP", []).append(_mean(best))
            for label, name in enumerate(self._class_names):
                samples.setdefault(f"AP/{name}", []).append(_mean(best[..., label]))
        return samples

    def _missing(self, partial: bool) -> list[int]:
        missing = [image_id for image_id in self._records if image_id not in self._detections]
        if missing and not partial:
            raise RuntimeError(
                f"{len(missing)} of {len(self._records)} images were not evaluated, the first is "
                f"image {missing[0]}; evaluate them or ask for summarize(partial=True)"
            )
        return missing

    def _evaluate(self) -> COCOeval:
        """COCO's evaluation, whose ``eval`` holds precision [IoU, recall, class, area, max] and
        recall [IoU, class, area, max]."""
        records = [self._records[image_id] for image_id in sorted(self._detections)]
        truth = self._coco(_truth_of(records, self._category_ids))
        found = self._coco(predictions_to_coco(self._detections, self._category_ids))
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, found, iouType="bbox")
            evaluation.params.maxDets = [self.max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def _coco(self, annotations: list[dict[str, Any]]) -> COCO:
        """An index made from memory: COCO's own loader of results refuses an empty list."""
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image_id} for image_id in sorted(self._detections)],
            "categories": [{"id": category_id} for category_id in self._category_ids],
            # COCOeval takes an id of 0 for "no match".
            "annotations": [
                {**annotation, "id": number} for number, annotation in enumerate(annotations, 1)
            ],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco


def predictions_to_coco(
    detections: Mapping[int, ImageDetections], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Brings detections to COCO's result format, as its evaluation server takes it.

    Args:
        detections: by image id.
        category_ids: the category id of each label; other labels are left out.

    Returns:
        Per detection image_id, category_id, bbox (x, y, w, h), score, and area and iscrowd.
    """
    results = []
    for image_id, found in detections.items():
        for score, label, (x1, y1, x2, y2) in zip(
            found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True
        ):
            if label < len(category_ids):
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": category_ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "score": score,
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
    return results


def _checked(image_id: int, found: Mapping[str, Tensor], num_classes: int) -> ImageDetections:
    scores = found["scores"].detach().cpu().double()
    labels = found["labels"].detach().cpu().long()
    boxes = found["boxes"].detach().cpu().double()
    if scores.dim() != 1 or labels.shape != scores.shape or boxes.shape != (len(scores), 4):
        raise ValueError(
            f"image {image_id}: scores and labels must be [Q] and boxes [Q, 4], got "
            f"{tuple(scores.shape)}, {tuple(labels.shape)} and {tuple(boxes.shape)}"
        )
    if not (scores.isfinite().all() and boxes.isfinite().all()):
        raise ValueError(
            f"image {image_id}: a score or box is NaN or infinite; the model has diverged"
        )
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(f"image {image_id}: boxes must be xyxy with x1 <= x2 and y1 <= y2")
    if ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(
            f"image {image_id}: labels must be in 0..{num_classes - 1}, got "
            f"{int(labels.min())}..{int(labels.max())}"
        )
    return ImageDetections(scores.numpy(), labels.numpy(), boxes.numpy())


def _truth_of(records: Sequence[ImageRecord], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    annotations = []
    for record in records:
        for (x1, y1, x2, y2), label, crowd, area in zip(
            record.boxes.tolist(),
            record.labels.tolist(),
            record.crowd.tolist(),
            record.areas.tolist(),
            strict=True,
        ):
            annotations.append(
                {
                    "image_id": record.image_id,
                    "category_id": category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return annotations


def _summary(
    result: Mapping[str, np.ndarray], class_names: Sequence[str], max_detections: int
) -> dict[str, float]:
    recall = result["recall"]
    best = result["precision"][..., -1]  # [IoU, recall, class, area]
    summary = {
        "AP": _mean(best[..., 0]),
        "AP50": _mean(best[0, ..., 0]),
        "AP75": _mean(best[5, ..., 0]),
        "APs": _mean(best[..., 1]),
        "APm": _mean(best[..., 2]),
        "APl": _mean(best[..., 3]),
        f"AR{max_detections}": _mean(recall[..., 0, -1]),
    }
    for label, name in enumerate(class_names):
        summary[f"AP/{name}"] = _mean(best[:, :, label, 0])
        summary[f"AP50/{name}"] = _mean(best[0, :, label, 0])
    return summary


def _mean(values: np.ndarray) -> float:
    """Mean where there is ground truth (COCO marks the rest by -1); NaN where there is none."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")

"""The images that a benchmark measures on."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_dset.benchmark.arms import Arm
from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.view import View, reader_config, recorded_view, view_of
from sparse_dset.engine.coco_evaluator import MAX_DETECTIONS
from sparse_dset.engine.datasets import open_dataset
from sparse_dset.engine.evaluate import evaluate, evaluation_loader
from sparse_dset.models.detector import Detector


def open_validation_set(
    data: Mapping[str, Any] | None,
    size: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    view: View | None = None,
) -> CocoDetection:
    """Opens the validation images of a resolved data configuration.

    Args:
        data: as in conf/data, with the key ``val``.
        size: (height, width) instead of the view's.
        class_names: those of the model, which must be the data's; None: not checked.
        view: that of the model, by which it sees these images too; a data configuration that says
            something else is warned of (its limit of pixels holds). None: as the data
            configuration says.

    Raises:
        FileNotFoundError: there is no validation set, or its annotations are not there.
        ValueError: the model knows other classes.
    """
    if not data or data.get("val") is None:
        raise FileNotFoundError(
            "there are no validation images (data.val=null, perhaps of the training); name some "
            "with data= and data.root=, e.g. data=coco data.root=/path"
        )
    val = dict(data["val"])
    if view is not None:
        limit = (val.get("reader") or {}).get("max_pixels", view.reader.max_pixels)
        view = replace(view, reader=replace(view.reader, max_pixels=limit))
        if recorded_view(val) != view:
            _warn_of_other_view(recorded_view(val), view)
        val |= {"transforms": view.as_config(), "reader": reader_config(view.reader)}
    if size is not None:
        val["transforms"] = {**val["transforms"], "size": list(size)}
    dataset = open_dataset(val, "data.val")
    if class_names is not None and list(class_names) != list(dataset.class_names):
        raise ValueError(
            f"the model knows the classes {list(class_names)}, but {dataset.annotations} has "
            f"{list(dataset.class_names)}"
        )
    return dataset


def _warn_of_other_view(said: View | None, view: View) -> None:
    warnings.warn(
        f"pictures are {view}, as the model's validation saw them; the data configuration says "
        f"{said or 'something else'}. Give size=[height,width] for another size",
        stacklevel=3,
    )


def find_validation_set(
    asked: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    size: Sequence[int] | None = None,
    view: View | None = None,
) -> CocoDetection | None:
    """Opens the data that was asked for, else that of a checkpoint's configuration, if it is here.

    Args:
        asked: a resolved data configuration, or None.
        record: the configuration of the detector; the data must have its ``model.class_names``.
        size, view: see `open_validation_set`.

    Raises:
        FileNotFoundError, ValueError: see `open_validation_set`; data that was not asked for may
            be absent, which is told on the terminal.
    """
    data = asked or record.get("data")
    if data is None:
        return None
    try:
        return open_validation_set(data, size, record["model"].get("class_names"), view)
    except FileNotFoundError as error:
        if asked and asked.get("val") is not None:
            raise
        print(f"random images and no AP: {error}")
        return None


def sample_images(dataset: CocoDetection, batch_size: int) -> Tensor:
    """Returns images spread evenly over a data set: ``[B, 3, H, W]`` in [0, 1].

    They are what validation sees, without padding: where a view that keeps the proportions gives
    several sizes, the images are those of the most frequent one, which is told.

    Args:
        dataset: where they come from; its transforms are a ``View``.
        batch_size: B; images repeat where the data set has fewer.
    """
    view = view_of(dataset)
    sizes = [view.size_of(*record.size) for record in dataset.records]
    ((height, width), count) = Counter(sizes).most_common(1)[0]
    if count < len(sizes):
        print(f"images: the {count} of {len(sizes)} that are seen as {height}x{width} pixels")
    own = [i for i, size in enumerate(sizes) if size == (height, width)]
    return torch.stack([dataset[own[i * count // batch_size]][0] for i in range(batch_size)])


def evaluate_arm(
    model: Detector,
    dataset: CocoDetection,
    arm: Arm,
    *,
    batch_size: int,
    max_detections: int = MAX_DETECTIONS,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Returns the numbers of `evaluate`, under a progress bar that names the arm."""
    loader = tqdm(evaluation_loader(dataset, batch_size), desc=f"AP of {arm.name}")
    return evaluate(
        model,
        loader,
        dataset,
        execution=arm.execution,
        keep_ratio=arm.keep_ratio,
        device=device,
        max_detections=max_detections,
        progress=False,
    )

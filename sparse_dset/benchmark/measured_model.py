"""What a script measures: a detector and the images it sees, as the command line describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from sparse_dset.benchmark.validation import find_validation_set, sample_images
from sparse_dset.checks import check_number
from sparse_dset.command_line import task_overrides
from sparse_dset.config import build_from_config
from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.view import view_of, view_of_detector
from sparse_dset.engine.calibrate import calibrated
from sparse_dset.engine.checkpoint import (
    detector_config,
    load_checkpoint,
    read_detector,
    weights_name,
)
from sparse_dset.engine.evaluate import evaluation_loader
from sparse_dset.engine.loggers import environment
from sparse_dset.models.detector import Detector
from sparse_dset.models.pruner import SCORE_BY, SELECTORS, ByContent


@dataclass(frozen=True)
class MeasuredModel:
    """A detector and images.

    Attributes:
        model: in evaluation.
        config: what describes it.
        dataset: where the images come from; None: they are random.
        images: ``[N, 3, H, W]`` in [0, 1], on the model's device.
    """

    model: Detector
    config: dict[str, Any]
    dataset: CocoDetection | None
    images: Tensor

    def describe(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what rows say of it: rows of the same setup can be compared.

        Args:
            plain: the configuration that it was opened from.
        """
        device = self.images.device
        hardware = environment(device)
        return {
            "model": model_name(plain["checkpoint"]),
            "weights": weights_name(plain["checkpoint"]),
            "overrides": " ".join(model_overrides()),
            "data": str(self.dataset.annotations) if self.dataset else "random images",
            "view": (view_of(self.dataset) if self.dataset else view_of_detector(self.model)).mode,
            "size": list(self.images.shape[-2:]),
            "batch_size": plain["batch_size"],
            "threads": torch.get_num_threads(),
            "instruction_set": hardware["instruction_set"],
            "device": str(device),
            "hardware": hardware["cpu" if device.type == "cpu" else "device"],
            "backend": self.model.backend,
            "algorithm": self.model.algorithm,
        }


def open_measured_model(
    plain: dict[str, Any], size: Sequence[int] | None, num_images: int, device: torch.device
) -> MeasuredModel:
    """Opens a detector and images of its data set, or random ones where it has none.

    Args:
        plain: a composed configuration with ``checkpoint``, ``model``, ``ops``, ``batch_size`` and
            perhaps ``data`` and ``selection``.
        size: (height, width); None: of the data, or of the model.
        num_images: how many images of a data set; of random ones there is one batch.
        device: where both go.

    Raises:
        ValueError: there are a checkpoint and settings of another model, or the detector cannot be
            told a keep ratio.
    """
    model, config = open_detector(plain)
    # Nothing was validated yet with random weights: there the data says how it is seen.
    view = None if plain["checkpoint"] is None else view_of_detector(model)
    dataset = find_validation_set(plain.get("data"), config, size, view)
    if selection_of(plain) and dataset is not None and isinstance(model.pruner.selector, ByContent):
        loader = evaluation_loader(dataset, plain["eval_batch_size"])
        model.pruner.selector, _ = calibrated(model, loader, progress=False)
    check_takes_keep_ratios(model)
    if dataset is None:
        images = torch.rand(plain["batch_size"], 3, *(size or model.image_size))
    else:
        images = sample_images(dataset, num_images)
    return MeasuredModel(model.to(device).eval(), config, dataset, images.to(device))


def open_detector(plain: dict[str, Any]) -> tuple[Detector, dict[str, Any]]:
    """Opens the checkpoint, or builds a detector with random weights.

    Returns:
        The detector, and the configuration that describes it. One with random weights keeps every
        token unless a forward pass is told a keep ratio.

    Raises:
        ValueError: there are a checkpoint and settings of another model.
    """
    if plain["checkpoint"] is None:
        settings = {**plain["model"], "pruner": {**plain["model"]["pruner"], "keep_ratio": 1.0}}
        config = {"model": settings}
        model = build_from_config(config, pretrained=False)
        model.check_decision()
    elif model_overrides():
        raise ValueError(
            f"the model is the one of {plain['checkpoint']}; leave out {model_overrides()}"
        )
    else:
        path, selection = plain["checkpoint"], selection_of(plain)
        if selection:  # what was calibrated was calibrated without it
            pruner = detector_config(load_checkpoint(path), path)["model"]["pruner"]
            offsets = {**(pruner.get("offsets") or {}), **selection.get("offsets", {})}
            selection = {**selection, "calibration": None, "offsets": offsets}
        model, config = read_detector(path, pruner=selection)
    for setting in ("backend", "algorithm"):
        if plain["ops"][setting] != "auto":
            setattr(model, setting, plain["ops"][setting])
    return model, config


def selection_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a checkpoint's pruner that are to change.

    Raises:
        ValueError: one is out of range, or there is no checkpoint whose pruner it could change.
    """
    given = dict(plain.get("selection", {}))
    offsets = {k: v for k, v in (given.pop("offsets", None) or {}).items() if v is not None}
    given = {key: value for key, value in given.items() if value is not None}
    given |= {"offsets": offsets} if offsets else {}
    if given and plain["checkpoint"] is None:
        raise ValueError(f"selection changes a checkpoint's pruner: say pruner.{next(iter(given))}")
    for key, known in (("selector", SELECTORS), ("score_by", SCORE_BY)):
        if given.get(key, known[0]) not in known:
            raise ValueError(
                f"selection.{key} must be one of {', '.join(known)}; got {given[key]!r}"
            )
    for key, least in (("halo", 0), ("max_tokens", 1)):
        check_number(f"selection.{key}", given.get(key, least), at_least=least, whole=True)
    for level, offset in offsets.items():
        check_number(f"selection.offsets.{level}", offset)
    return given


def check_takes_keep_ratios(model: Detector) -> None:
    """Refuses a detector that keeps what its content asks for, and nobody knows how much that is.

    Raises:
        ValueError: it is one.
    """
    selector = model.pruner.selector
    if isinstance(selector, ByContent) and not selector.calibration:
        raise ValueError(
            "keep ratios need pruner.selector=topk or a checkpoint that scripts/calibrate.py has "
            "seen"
        )


def model_overrides() -> list[str]:
    """Returns what the command line says about the model, but for the keep ratio."""
    return [
        text
        for text in task_overrides()
        if text.lstrip("+~").split("=")[0].split(".")[0] in ("model", "pruner", "losses")
        and not text.startswith("pruner.keep_ratio=")
    ]


def model_name(checkpoint: str | None) -> str:
    """Returns the checkpoint, or the name of the model that the command line chose."""
    return checkpoint or HydraConfig.get().runtime.choices["model"]

"""A training step without its optimiser."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sparse_dset import build_criterion
from sparse_dset.engine.teacher import teacher_maps
from sparse_dset.models.detector import Detector
from sparse_dset.structures.outputs import DetectorOutput


def losses_of(
    model: Detector,
    images: Tensor,
    targets: list[dict[str, Any]],
    *overrides: str,
    **arguments: Any,
) -> dict[str, Tensor]:
    """The losses of a forward pass; ``overrides`` are those of the criterion."""
    return _forward(model, images, targets, overrides, arguments)[1]


def _forward(
    model: Detector,
    images: Tensor,
    targets: list[dict[str, Any]],
    overrides: tuple[str, ...],
    arguments: dict[str, Any],
) -> tuple[DetectorOutput, dict[str, Tensor]]:
    criterion = build_criterion(overrides)
    out = model(images, targets, **arguments)
    mask = arguments.get("padding_mask")
    teacher = teacher_maps(model, images, mask) if criterion.distill else None
    return out, criterion(out, targets, teacher=teacher)


@dataclass(frozen=True)
class StepOutput(DetectorOutput):
    """What the detector returned, with its losses; none without targets."""

    losses: dict[str, Tensor]


def run_step(
    model: Detector,
    images: Tensor,
    targets: list[dict[str, Any]] | None = None,
    **arguments: Any,
) -> StepOutput:
    """Runs with the same noise every time and backpropagates all losses."""
    torch.manual_seed(5)
    losses: dict[str, Tensor] = {}
    if targets is None:
        out = model(images, **arguments)
    else:
        out, losses = _forward(model, images, targets, (), arguments)
        sum(losses.values()).backward()  # type: ignore[union-attr]
    return StepOutput(**{f.name: getattr(out, f.name) for f in fields(out)}, losses=losses)

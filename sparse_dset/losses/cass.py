"""Context-aware soft supervision (CASS) of the token scores."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.checks import check_number
from sparse_dset.losses.totals import StepTotals
from sparse_dset.losses.varifocal import negative_weight
from sparse_dset.structures.targets import PaddedTargets

Shape = Literal["gaussian", "linear"]
Kind = Literal["focal", "varifocal"]

# The Gaussian falls to exp(-4.5) = 0.011 at the outer edge of the band, and is cut there.
_SIGMAS_IN_BAND = 3.0


def cass_targets(
    targets: PaddedTargets,
    height: int,
    width: int,
    cells_per_image: Tensor,
    *,
    band: float = 0.3,
    min_size: float = 1.0,
    shape: Shape = "gaussian",
) -> Tensor:
    """Tells how much each cell deserves to be kept.

    1 for a cell whose centre lies inside a box and for the cell that holds a box's centre; falling
    to 0 within a band around the box; the maximum over an image's boxes.

    Args:
        targets: the batch's targets.
        height, width: the size of the grid, the same for all images.
        cells_per_image: float ``[B, 2]``, the (height, width) in cells that an image covers: its
            unpadded size / stride.
        band: width of the band on each side, relative to the box; at least 0.
        min_size: smaller boxes are grown to this many cells.
        shape: the fall within the band.

    Returns:
        float32 ``[B, height, width]`` in [0, 1].
    """
    objects = _object_targets(targets, height, width, cells_per_image, band, min_size, shape)
    return objects.amax(dim=1)


def _object_targets(
    targets: PaddedTargets,
    height: int,
    width: int,
    cells_per_image: Tensor,
    band: float,
    min_size: float,
    shape: Shape,
) -> Tensor:
    """The target of each cell for each object alone: ``[B, max(G, 1), height, width]``."""
    batch_size, num_objects = targets.mask.shape
    if num_objects == 0:
        return targets.boxes.new_zeros(batch_size, 1, height, width)
    extents = cells_per_image.to(targets.boxes)
    center_x, center_y, size_x, size_y = (
        targets.boxes * extents.flip(1).repeat(1, 2)[:, None]
    ).unbind(-1)
    outside_y = _outside(center_y, size_y.clamp(min=min_size), height, band)
    outside_x = _outside(center_x, size_x.clamp(min=min_size), width, band)
    distance = (outside_y[..., :, None].square() + outside_x[..., None, :].square()).sqrt()
    holds_center = (
        _holds(center_y, extents[:, :1], height)[..., :, None]
        & _holds(center_x, extents[:, 1:], width)[..., None, :]
    )
    weight = _fall(distance, shape).masked_fill(holds_center, 1.0)
    return weight * targets.mask[..., None, None]


class CassLoss(nn.Module):
    """Trains the token scores towards ``cass_targets``.

    Published settings: weight 0.01-0.05, band 0.3-1.2 of the box, minimum size 1-2 cells.
    """

    def __init__(
        self,
        weight: float = 0.05,
        loss: Kind = "varifocal",
        band: float = 0.3,
        min_size: float = 1.0,
        shape: Shape = "gaussian",
        alpha: float = 0.75,
        gamma: float = 2.0,
        balanced: bool = False,
    ) -> None:
        """
        Args:
            weight: of the loss.
            loss: "varifocal", or "focal" with soft targets (quality focal loss, Li et al.,
                NeurIPS 2020): weight ``|target - p| ** gamma``.
            balanced: every object weighs the same, however many cells it covers: otherwise small
                objects, which are the hardest to see, hardly count ("varifocal" only).
            band, min_size, shape: see ``cass_targets``.
            alpha: weight of the varifocal loss's negatives.
            gamma: exponent of either loss.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__()
        if loss not in ("focal", "varifocal"):
            raise ValueError(f"loss must be 'focal' or 'varifocal', got {loss!r}")
        if shape not in ("gaussian", "linear"):
            raise ValueError(f"shape must be 'gaussian' or 'linear', got {shape!r}")
        if balanced and loss != "varifocal":
            raise ValueError(f"balanced needs loss = 'varifocal', got {loss!r}")
        settings = {"weight": weight, "band": band, "min_size": min_size, "gamma": gamma}
        for name, value in settings.items():
            check_number(f"losses.cass.{name}", value, at_least=0)
        check_number("losses.cass.alpha", alpha, at_least=0, at_most=1)
        self.weight = weight
        self.loss = loss
        self.band = band
        self.min_size = min_size
        self.shape: Shape = shape
        self.alpha = alpha
        self.gamma = gamma
        self.balanced = balanced

    def forward(
        self,
        token_scores: Tensor,
        valid: Tensor,
        targets: PaddedTargets,
        extents: Tensor,
        totals: StepTotals | None = None,
        name: str = "cass",
    ) -> Tensor:
        """Returns the weighted loss, divided by what the targets sum up to (at least 1).

        Where it is balanced, what draws towards the objects is divided by their number instead.

        Args:
            token_scores: logits ``[B, H, W]``.
            valid: bool ``[B, H, W]``, True = not padding.
            targets: the batch's targets.
            extents: float ``[B, 2]``, (height, width) in cells that each image covers.
            totals: of the step; None: this is all of it.
            name: of this loss in the totals.
        """
        totals = StepTotals() if totals is None else totals
        height, width = token_scores.shape[1:]
        objects = _object_targets(
            targets, height, width, extents, self.band, self.min_size, self.shape
        )
        objects = objects * valid.unsqueeze(1)
        goal = objects.amax(dim=1)
        logits = token_scores.float().masked_fill(~valid, 0.0)
        total = totals.divisor(name, goal.sum())
        if self.loss == "focal":
            weight = (goal - logits.detach().sigmoid()).abs().pow(self.gamma) / total
        else:
            weight = negative_weight(logits, goal, self.alpha, self.gamma) / total
            if self.balanced:
                shares = _shares(objects)
                goal_weight = shares / totals.divisor(f"{name}_objects", shares.sum())
            else:
                goal_weight = goal / total
            weight = weight + goal_weight
        entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
        return self.weight * (weight * entropy * valid).sum()


def _shares(objects: Tensor) -> Tensor:
    """The weight of each cell, for targets ``[B, G, H, W]`` of single objects: 1 for all the cells
    of an object together, or less where its cells are few."""
    size = objects.sum((-1, -2), keepdim=True)
    return (objects / size.clamp(min=1.0)).sum(1)


def _outside(center: Tensor, size: Tensor, length: int, band: float) -> Tensor:
    """How many bands each cell's centre is outside the box, along one axis: ``[B, G, length]``."""
    cells = torch.arange(length, device=center.device) + 0.5
    outside = ((cells - center[..., None]).abs() - size[..., None] / 2).clamp(min=0)
    return outside / (band * size[..., None]).clamp(min=1e-6)


def _holds(center: Tensor, extent: Tensor, length: int) -> Tensor:
    """Which cell along one axis holds the box's centre: bool ``[B, G, length]``."""
    last = (extent.ceil() - 1).clamp(min=0, max=length - 1)
    cell = torch.minimum(center.floor().clamp(min=0), last)
    return torch.arange(length, device=center.device) == cell[..., None]


def _fall(distance: Tensor, shape: Shape) -> Tensor:
    """1 at distance 0, falling to 0 at distance 1 and beyond."""
    if shape == "linear":
        return (1 - distance).clamp(min=0)
    return torch.exp(-0.5 * (_SIGMAS_IN_BAND * distance).square()) * (distance <= 1)

"""Finds the settings with which a pruner keeps a wanted share of a data set on average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from sparse_dset.models.detector import Detector
from sparse_dset.models.modes import evaluation
from sparse_dset.models.pruner import ByContent, TokenSelector, grown

STEPS = 100
"""Keep ratios for which a setting is found: 0, 1, ..., 100 %."""


@dataclass(frozen=True)
class ScoredSet:
    """Token scores of a data set.

    Attributes:
        scores: logits ``[N, H, W]`` of the stride-32 cells, of the size of the largest image.
        valid: bool ``[N, H, W]``, the cells that an image has.
        centres: int64 ``[G, 3]``, (image, y, x) of the cell that holds an object's centre.
    """

    scores: Tensor
    valid: Tensor
    centres: Tensor


@torch.no_grad()
def score_dataset(
    model: Detector,
    loader: DataLoader,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ScoredSet:
    """Scores every image that a loader gives; see ``evaluation_loader``."""
    scores: list[Tensor] = []
    valid: list[Tensor] = []
    centres: list[Tensor] = []
    with evaluation(model):
        for batch in tqdm(loader, desc="score", disable=not progress):
            batch = batch.to(device)
            logits, cells = (x.cpu() for x in model.score_tokens(batch.images, batch.padding_mask))
            for target, own, there in zip(batch.targets, logits, cells, strict=True):
                height, width = target["size"]
                centre = target["boxes"][:, :2].cpu() * torch.tensor([width, height]) / 32
                last = torch.stack([there.any(0).sum(), there.any(1).sum()]) - 1
                cell = torch.minimum(centre.floor().long(), last).flip(1)
                centres.append(F.pad(cell, (1, 0), value=len(scores)))
                scores.append(own)
                valid.append(there)
    return ScoredSet(_stacked(scores), _stacked(valid), torch.cat(centres))


def calibrate(selector: ByContent, scored: ScoredSet, halo: int = 0) -> tuple[float, ...]:
    """Finds, by bisection, the setting for each keep ratio.

    Args:
        selector: whose setting is wanted; its limits on tokens hold.
        scored: the data.
        halo: of the pruner.

    Returns:
        ``STEPS + 1`` settings, as ``ByContent.calibration`` holds them.
    """
    rises = _share(selector.with_setting(1.0), scored, halo) > _share(
        selector.with_setting(1e-9), scored, halo
    )
    settings = []
    for step in range(STEPS + 1):
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            above = _share(selector.with_setting(middle), scored, halo) > step / STEPS
            low, high = (low, middle) if above == rises else (middle, high)
        settings.append((low + high) / 2)
    settings[-1] = 1.0 if rises else 0.0  # everything, in any data
    return tuple(settings)


def kept_cells(selector: TokenSelector, scored: ScoredSet, halo: int = 0) -> Tensor:
    """Returns the cells that are kept: bool ``[N, H, W]``."""
    return grown(selector(scored.scores, scored.valid), halo) & scored.valid


def mean_share(kept: Tensor, scored: ScoredSet) -> float:
    """Returns the share of cells that is kept, the mean over the images."""
    shares = kept.flatten(1).sum(1) / scored.valid.flatten(1).sum(1).clamp(min=1)
    return float(shares.double().mean())


def centres_kept(kept: Tensor, scored: ScoredSet) -> float:
    """Returns the share of objects whose centre's cell is kept; NaN without objects."""
    return float(kept[tuple(scored.centres.unbind(1))].double().mean())


def _share(selector: TokenSelector, scored: ScoredSet, halo: int) -> float:
    return mean_share(kept_cells(selector, scored, halo), scored)


def _stacked(maps: list[Tensor]) -> Tensor:
    height, width = (max(m.shape[i] for m in maps) for i in (0, 1))
    padded = [F.pad(m, (0, width - m.shape[1], 0, height - m.shape[0])) for m in maps]
    return torch.stack(padded)

"""Finds the settings with which a pruner keeps a wanted share of a data set on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from sparse_dset.engine.loading import shown_batches
from sparse_dset.models.detector import Detector
from sparse_dset.models.evaluation_mode import evaluation
from sparse_dset.models.pruner import ByContent, TokenSelector, select
from sparse_dset.structures.geometry import STRIDES

STEPS = 100
"""Keep ratios for which a setting is found: 0, 1, ..., 100 %."""

_PRECISION = 1e-7
_CLOSE_ENOUGH = 2e-4


@dataclass(frozen=True)
class ScoredSet:
    """Token scores of a data set.

    Attributes:
        scores: logits ``[N, H_l, W_l]`` of the levels that decide, finest first, of the size of the
            largest image.
        valid: bool ``[N, H_l, W_l]`` at strides 8, 16 and 32, the cells that an image has.
        centres: int64 ``[G, 3]``, (image, y, x) of the stride-8 site that holds an object's centre.
    """

    scores: tuple[Tensor, ...]
    valid: tuple[Tensor, ...]
    centres: Tensor


def calibrated(
    model: Detector,
    loader: DataLoader,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> tuple[ByContent, ScoredSet]:
    """Calibrates a detector's pruner on a data set.

    Args:
        model: its selector is ``threshold`` or ``mass``.
        loader, device, progress: see `score_dataset`.

    Returns:
        The selector with its calibration, and the scores.

    Raises:
        ValueError: the selector has no setting to be found.
    """
    selector = model.pruner.selector
    if not isinstance(selector, ByContent):
        raise ValueError(
            f"pruner.selector must be threshold or mass to be calibrated, got {selector}"
        )
    scored = score_dataset(model, loader, device=device, progress=progress)
    return selector.with_calibration(calibrate(selector, scored, model.pruner.halo)), scored


@torch.no_grad()
def score_dataset(
    model: Detector,
    loader: DataLoader,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ScoredSet:
    """Scores every image that a loader gives; see ``evaluation_loader``."""
    scores: list[list[Tensor]] = []
    valid: list[list[Tensor]] = []
    centres: list[Tensor] = []
    count = 0
    with evaluation(model) as network:
        for batch in shown_batches(loader, "score", progress=progress):
            batch = batch.to(device)
            logits, cells = network.score_tokens(batch.images, batch.padding_mask)
            scores.append([x.cpu() for x in logits])
            valid.append([x.cpu() for x in cells])
            for target, there in zip(batch.targets, valid[-1][0], strict=True):
                height, width = target["size"]
                centre = target["boxes"][:, :2].cpu() * torch.tensor([width, height]) / STRIDES[0]
                last = torch.stack([there.any(0).sum(), there.any(1).sum()]) - 1
                site = torch.minimum(centre.floor().long(), last).flip(1)
                centres.append(F.pad(site, (1, 0), value=count))
                count += 1
    return ScoredSet(_joined(scores), _joined(valid), torch.cat(centres))


def calibrate(selector: ByContent, scored: ScoredSet, halo: int = 0) -> tuple[float, ...]:
    """Finds, by bisection, the setting for each keep ratio.

    Args:
        selector: whose setting is wanted; its limits on tokens hold.
        scored: the data.
        halo: of the pruner.

    Returns:
        ``STEPS + 1`` settings, as ``ByContent.calibration`` holds them.
    """
    known = {value: _share(selector.with_setting(value), scored, halo) for value in (1e-9, 1.0)}
    rises = known[1.0] > known[1e-9]
    settings = []
    for step in range(STEPS + 1):
        low, high = 0.0, 1.0
        for value, share in known.items():  # what was tried for other steps narrows the search
            if (share > step / STEPS) == rises:
                high = min(high, value)
            else:
                low = max(low, value)
        while high - low > _PRECISION:
            middle = (low + high) / 2
            known[middle] = share = _share(selector.with_setting(middle), scored, halo)
            low, high = (low, middle) if (share > step / STEPS) == rises else (middle, high)
            if abs(share - step / STEPS) < _CLOSE_ENOUGH:
                low = high = middle
        settings.append((low + high) / 2)
    settings[-1] = 1.0 if rises else 0.0  # everything, in any data
    return tuple(settings)


def kept_tokens(selector: TokenSelector, scored: ScoredSet, halo: int = 0) -> tuple[Tensor, ...]:
    """Returns the tokens that are kept: bool ``[N, H_l, W_l]`` at strides 8, 16 and 32."""
    return select(scored.scores, scored.valid, selector, halo)


def mean_share(kept: Sequence[Tensor], scored: ScoredSet) -> float:
    """Returns the share of tokens that is kept, the mean over the images."""
    tokens, there = (
        torch.stack([mask.flatten(1).sum(1) for mask in masks]).sum(0)
        for masks in (kept, scored.valid)
    )
    return float((tokens / there.clamp(min=1).double()).mean())


def centres_kept(kept: Sequence[Tensor], scored: ScoredSet) -> float:
    """Returns the share of objects whose centre lies in a kept stride-8 site; NaN without any."""
    return float(kept[0][tuple(scored.centres.unbind(1))].double().mean())


def _share(selector: TokenSelector, scored: ScoredSet, halo: int) -> float:
    return mean_share(kept_tokens(selector, scored, halo), scored)


def _joined(batches: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Joins the maps of batches ``[B, H, W]``, level by level, padded to the largest."""
    levels = []
    for maps in zip(*batches, strict=True):
        height, width = (max(m.shape[i] for m in maps) for i in (1, 2))
        padded = [F.pad(m, (0, width - m.shape[2], 0, height - m.shape[1])) for m in maps]
        levels.append(torch.cat(padded))
    return tuple(levels)

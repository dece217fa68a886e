"""Decides which cells are kept, from their scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sparse_dset.checks import check_number


def check_keep_ratio(keep_ratio: Any, name: str = "keep_ratio") -> float:
    """Returns the ratio as a float of six digits: 0.1 + 0.2 is 0.3.

    Raises:
        ValueError: it is not a number in (0, 1].
    """
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, Real):
        raise ValueError(f"{name} must be a number in (0, 1], got {keep_ratio!r}")
    value = float(keep_ratio)
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be in (0, 1], got {value}")
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class TokenSelector(ABC):
    """Keeps cells by rank within their image.

    The cells are those of all levels that decide.

    Attributes:
        min_tokens: an image keeps at least so many of its valid cells (or all it has), which are
            the best of all levels that decide: with one, a level may hold none.
        max_tokens: and at most so many, unless it is to keep all (``relaxed(0.0)``); None: no cap.
    """

    min_tokens: int = 1
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_number("pruner.min_tokens", self.min_tokens, at_least=1, whole=True)
        if self.max_tokens is not None:
            name = "pruner.max_tokens (not below min_tokens)"
            check_number(name, self.max_tokens, at_least=self.min_tokens, whole=True)

    def __call__(self, scores: Tensor, valid: Tensor, sizes: Tensor) -> Tensor:
        """Selects.

        Args:
            scores: logits ``[B, N]``.
            valid: bool ``[B, N]``, the cells that may be kept.
            sizes: int64 ``[B, N]``, how many tokens are kept with a cell.

        Returns:
            bool ``[B, N]``, the kept cells; never one that is not valid. Of cells with the same
            score the first ones.
        """
        scores = scores.detach().float().masked_fill(~valid, -torch.inf)
        ranked, order = scores.sort(dim=1, descending=True, stable=True)
        ranked_sizes = (sizes * valid).gather(1, order)
        count = self.count(ranked, ranked_sizes).clamp(min=self.min_tokens)
        if self.max_tokens is not None:
            count = count.clamp(max=self.max_tokens)
        rank = torch.arange(scores.shape[1], device=scores.device)
        return torch.zeros_like(valid).scatter(1, order, rank < count[:, None]) & valid

    def _cap(self, progress: float) -> int | None:
        """The cap on the way to the target, which it reaches from above."""
        if self.max_tokens is None or progress == 0:
            return None
        return math.ceil(self.max_tokens / progress)

    @property
    @abstractmethod
    def keeps_all(self) -> bool:
        """Whether every valid cell is kept, whatever the scores are."""

    def by_image(self) -> TokenSelector:
        """Returns the selector for evaluation: what an image keeps is its own affair."""
        return self

    @abstractmethod
    def count(self, ranked: Tensor, sizes: Tensor) -> Tensor:
        """Returns how many cells each image keeps: int64 ``[B]``.

        Args:
            ranked: logits ``[B, N]``, best first, -inf for cells that are not valid.
            sizes: int64 ``[B, N]``, their tokens; 0 for cells that are not valid.
        """

    @abstractmethod
    def relaxed(self, progress: float) -> TokenSelector:
        """Returns the selector at ``progress`` in [0, 1] between keeping all and its target."""

    @abstractmethod
    def with_keep_ratio(self, keep_ratio: float) -> TokenSelector:
        """Returns the selector for another keep ratio.

        Raises:
            ValueError: the ratio is out of range, or this selector has none.
        """


@dataclass(frozen=True)
class TopK(TokenSelector):
    """Keeps the same share of tokens in every image, to the nearest cell."""

    keep_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(
            self, "keep_ratio", check_keep_ratio(self.keep_ratio, "pruner.keep_ratio")
        )

    @property
    def keeps_all(self) -> bool:
        return self.keep_ratio == 1.0 and self.max_tokens is None

    def count(self, ranked: Tensor, sizes: Tensor) -> Tensor:
        kept = sizes.cumsum(1)
        # A cell is kept if that brings the count nearer to what is asked.
        wanted = (2 * kept - sizes) <= 2 * self.keep_ratio * kept[:, -1:].double()
        return (wanted & (sizes > 0)).sum(1)

    def relaxed(self, progress: float) -> TopK:
        keep_ratio = 1.0 - progress + progress * self.keep_ratio
        return replace(self, keep_ratio=keep_ratio, max_tokens=self._cap(progress))

    def with_keep_ratio(self, keep_ratio: float) -> TopK:
        return replace(self, keep_ratio=keep_ratio)


@dataclass(frozen=True)
class BatchTopK(TopK):
    """Keeps a share of the tokens of a whole batch, the best ones wherever they are.

    For training: the count follows the content as with a calibrated threshold, at a keep ratio that
    is known. What an image keeps depends on the others of its batch; in evaluation, where it must
    not, every image keeps the same share.
    """

    def by_image(self) -> TopK:
        return TopK(self.min_tokens, self.max_tokens, self.keep_ratio)

    def count(self, ranked: Tensor, sizes: Tensor) -> Tensor:
        best_first = ranked.flatten().sort(descending=True, stable=True)
        count = super().count(best_first.values[None], sizes.flatten()[best_first.indices][None])
        chosen = torch.zeros_like(best_first.indices, dtype=torch.bool)
        chosen[best_first.indices[: int(count)]] = True
        return chosen.view(ranked.shape).sum(1)


class ByContent(TokenSelector):
    """Keeps as many cells as an image's scores ask for, by a setting between 0 and 1.

    Attributes:
        calibration: the settings that keep 0, ..., 100 % of a data set's tokens on average, as many
            as there are steps and one more; empty: not calibrated.
    """

    calibration: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.calibration) == 1:
            raise ValueError(
                "pruner.calibration must be settings for evenly spaced keep ratios from 0 to 1, "
                f"two at least, as scripts/calibrate.py finds them; got {list(self.calibration)}"
            )

    @abstractmethod
    def with_setting(self, value: float) -> ByContent:
        """Returns the selector with another setting."""

    @abstractmethod
    def with_calibration(self, calibration: tuple[float, ...]) -> ByContent:
        """Returns the selector with a calibration."""

    def with_keep_ratio(self, keep_ratio: float) -> TokenSelector:
        """Returns the selector that keeps this share on average over the calibration's data.

        Raises:
            ValueError: the ratio is out of range, or below 1 without a calibration.
        """
        if check_keep_ratio(keep_ratio) == 1.0:
            return replace(self.relaxed(0.0), max_tokens=self.max_tokens)
        if not self.calibration:
            raise ValueError(
                f"keep_ratio = {keep_ratio} needs pruner.selector=topk or a calibration: "
                f"{type(self).__name__} keeps what its own setting says until scripts/calibrate.py "
                "has told it which settings keep how much"
            )
        place = keep_ratio * (len(self.calibration) - 1)
        below = min(int(place), len(self.calibration) - 2)
        lower, upper = self.calibration[below : below + 2]
        return self.with_setting(lower + (upper - lower) * (place - below))


@dataclass(frozen=True)
class Threshold(ByContent):
    """Keeps the cells whose score, as a probability, reaches a threshold."""

    threshold: float = 0.5
    calibration: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("pruner.threshold", self.threshold, at_least=0, at_most=1)

    @property
    def keeps_all(self) -> bool:
        return self.threshold == 0.0 and self.max_tokens is None

    def count(self, ranked: Tensor, sizes: Tensor) -> Tensor:
        reached = (ranked.sigmoid() >= self.threshold) & ranked.isfinite()
        return reached.sum(1)

    def with_setting(self, value: float) -> Threshold:
        return replace(self, threshold=value)

    def with_calibration(self, calibration: tuple[float, ...]) -> Threshold:
        return replace(self, calibration=calibration)

    def relaxed(self, progress: float) -> Threshold:
        threshold = progress * self.threshold
        return replace(self, threshold=threshold, max_tokens=self._cap(progress))


@dataclass(frozen=True)
class Mass(ByContent):
    """Keeps the best cells that together hold a share of an image's probability mass."""

    mass: float = 0.9
    calibration: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("pruner.mass", self.mass, above=0, at_most=1)

    @property
    def keeps_all(self) -> bool:
        return self.mass == 1.0 and self.max_tokens is None

    def count(self, ranked: Tensor, sizes: Tensor) -> Tensor:
        if self.mass == 1.0:
            return (sizes > 0).sum(1)
        probability = ranked.sigmoid()
        before = probability.cumsum(1) - probability
        return (before < self.mass * probability.sum(1, keepdim=True)).sum(1)

    def with_setting(self, value: float) -> Mass:
        return replace(self, mass=value)

    def with_calibration(self, calibration: tuple[float, ...]) -> Mass:
        return replace(self, calibration=calibration)

    def relaxed(self, progress: float) -> Mass:
        mass = 1.0 - progress + progress * self.mass
        return replace(self, mass=mass, max_tokens=self._cap(progress))

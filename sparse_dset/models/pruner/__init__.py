"""Which tokens are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparse_dset.models.pruner.pruner import (
    SCORE_BY,
    Decision,
    Pruner,
    grown,
    inherit,
    select,
)
from sparse_dset.models.pruner.scorer import TokenScorer
from sparse_dset.models.pruner.selector import (
    BatchTopK,
    ByContent,
    Mass,
    Threshold,
    TokenSelector,
    TopK,
    check_keep_ratio,
)

__all__ = [
    "BY_CONTENT",
    "SCORE_BY",
    "SELECTORS",
    "BatchTopK",
    "ByContent",
    "Decision",
    "Mass",
    "Pruner",
    "Threshold",
    "TokenScorer",
    "TokenSelector",
    "TopK",
    "check_keep_ratio",
    "grown",
    "inherit",
    "make_pruner",
    "make_selector",
    "select",
]


BY_CONTENT = ("threshold", "mass")
"""Selectors whose counts follow the content, by a setting that is calibrated."""

SELECTORS = ("topk", "batch", *BY_CONTENT)


def make_selector(
    selector: str,
    keep_ratio: float,
    threshold: float,
    mass: float,
    min_tokens: int,
    max_tokens: int | None,
    calibration: Sequence[float] | None = None,
) -> TokenSelector:
    """Makes the selector called "topk", "batch", "threshold" or "mass" from the settings of all."""
    check_keep_ratio(keep_ratio, "pruner.keep_ratio")
    settings = tuple(calibration or ())
    match selector:
        case "topk":
            return TopK(min_tokens, max_tokens, keep_ratio)
        case "batch":
            return BatchTopK(min_tokens, max_tokens, keep_ratio)
        case "threshold":
            by_content: ByContent = Threshold(min_tokens, max_tokens, threshold, settings)
        case "mass":
            by_content = Mass(min_tokens, max_tokens, mass, settings)
        case _:
            raise ValueError(
                f"pruner.selector must be one of {', '.join(SELECTORS)}; got {selector!r}"
            )
    return by_content.with_keep_ratio(keep_ratio) if settings else by_content


def make_pruner(
    in_channels: Sequence[int],
    *,
    selector: str = "topk",
    keep_ratio: float = 1.0,
    threshold: float = 0.5,
    mass: float = 0.9,
    min_tokens: int = 1,
    max_tokens: int | None = None,
    calibration: Sequence[float] | None = None,
    stage: str = "s5",
    levels: Sequence[str] | None = None,
    hidden: int = 64,
    context: int = 1,
    local: int = 0,
    finest: str = "s5",
    halo: int = 0,
    gate: bool = False,
    scatter_levels: Sequence[str] = ("s5",),
    score_by: str = "learned",
    offsets: Mapping[str, float] | None = None,
) -> Pruner:
    """Makes a pruner from flat settings; see ``Pruner`` and the selectors for their meaning."""
    rule = make_selector(selector, keep_ratio, threshold, mass, min_tokens, max_tokens, calibration)
    return Pruner(
        in_channels,
        rule,
        stage,
        levels,
        hidden,
        context,
        local,
        finest,
        halo,
        gate,
        scatter_levels,
        score_by,
        offsets,
    )

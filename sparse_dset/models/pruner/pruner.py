"""Token pruning: score cells, select some, and let the levels below inherit the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.checks import check_list, check_number
from sparse_dset.models.pruner.scorer import (
    LEVELS,
    TokenScorer,
    level_index,
    score_at_random,
    score_by_norm,
)
from sparse_dset.models.pruner.selector import TokenSelector
from sparse_dset.structures import enlarged

STAGES = ("s2", "s3", "s5")

SCORE_BY = ("learned", "norm", "random")


@dataclass(frozen=True)
class Decision:
    """What the pruner decided.

    Attributes:
        token_scores: logits ``[B, H_l, W_l]`` of the levels that decide, finest first.
        kept: bool ``[B, H_l, W_l]`` per level at strides 8, 16 and 32, finest first; nested.
    """

    token_scores: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]


class Pruner(nn.Module):
    """Scorer and selector.

    Args:
        in_channels: channels of the backbone's maps at strides 4, 8, 16 and 32.
        selector: the rule by which cells are kept.
        stage: when to decide: "s5" after the backbone, as DSET does; "s3" after stride 8, and "s2"
            after stride 4, so that the later stages of the backbone run on kept sites only.
        levels: which maps the scorer sees; None: all that are there at ``stage``, but "s2" only
            where the decision is early.
        hidden, context, local, finest: see ``TokenScorer``; the levels that are scored decide
            together, see ``select``.
        halo: cells around the selected ones that are kept too, on each level that decides, so that
            those at an edge see more.
        gate: let the detection loss train the scorer: kept features are multiplied by a gate
            whose value is 1 and whose gradient is that of the score (straight-through).
        scatter_levels: the levels that ``dense_scatter`` prunes; DSET prunes s5 only.
        score_by: "learned", or a baseline that needs no training: "norm" of the features that the
            scorer would look at, or "random".
        offsets: by level, added to its scores where cells are ranked: more of a level that gets
            more, less of the others.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        selector: TokenSelector,
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
    ) -> None:
        super().__init__()
        if score_by not in SCORE_BY:
            raise ValueError(
                f"pruner.score_by must be one of {', '.join(SCORE_BY)}; got {score_by!r}"
            )
        if stage not in STAGES:
            raise ValueError(f"pruner.stage must be one of {', '.join(STAGES)}; got {stage!r}")
        self.num_early = level_index(stage) + 1
        early = LEVELS[: self.num_early]
        for name, value in (("pruner.levels", levels), ("pruner.scatter_levels", scatter_levels)):
            if value is not None:
                check_list(name, value)
        if levels is None:
            levels = early if stage != "s5" else LEVELS[1:]
        late = [name for name in levels if level_index(name) >= self.num_early]
        if late:
            raise ValueError(
                f"pruner.levels names {late[0]}, which is not there yet at pruner.stage={stage}: "
                f"choose among {', '.join(early)}"
            )
        check_number("pruner.halo", halo, at_least=0, whole=True)
        self.scorer = TokenScorer(in_channels, levels, hidden, context, local, finest)
        self.selector = selector
        self.score_by = score_by
        self.offsets = self._read_offsets(offsets or {})
        self.halo = halo
        self.gate = gate
        self.scatter_levels = tuple(level_index(name) - 1 for name in scatter_levels)
        if min(self.scatter_levels, default=-1) < 0:
            raise ValueError(
                f"pruner.scatter_levels are some of s3, s4, s5, got {list(scatter_levels)}"
            )

    def _read_offsets(self, offsets: Mapping[str, float]) -> tuple[float, ...]:
        if not isinstance(offsets, Mapping):
            raise ValueError(f"pruner.offsets must be by level, e.g. {{s4: -1.0}}; got {offsets!r}")
        for name, offset in offsets.items():
            check_number(f"pruner.offsets.{name}", offset)
        deciding = [LEVELS[i] for i in self.scorer.scored]
        idle = [name for name in offsets if name not in deciding]
        if idle:
            raise ValueError(
                f"pruner.offsets names {idle[0]!r}; the levels that decide are "
                f"{', '.join(deciding)} (pruner.finest)"
            )
        return tuple(float(offsets.get(name, 0.0)) for name in deciding)

    @property
    def is_early(self) -> bool:
        """Whether stages of the backbone come after the decision."""
        return self.num_early < len(LEVELS)

    def forward(
        self, features: Sequence[Tensor], valid: Sequence[Tensor], selector: TokenSelector
    ) -> Decision:
        """Decides.

        Args:
            features: backbone maps from stride 4 to that of the stage, zero in the padding.
            valid: bool ``[B, H_l, W_l]`` at strides 8, 16, 32, the cells that are not padding.
            selector: normally ``self.selector``, or a relative of it (another keep ratio).
        """
        scores = self.score(features, valid)
        return Decision(scores, select(self.ranked(scores), valid, selector, self.halo))

    def score(self, features: Sequence[Tensor], valid: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns token scores, see ``TokenScorer``, by whatever is to tell them."""
        if self.score_by == "norm":
            return score_by_norm(self.scorer, features)
        if self.score_by == "random":
            return score_at_random(valid, len(self.scorer.scored))
        return self.scorer(features, valid)

    def ranked(self, scores: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the scores by which cells are ranked, see ``select``."""
        return tuple(own + offset for own, offset in zip(scores, self.offsets, strict=True))

    def gated(self, feature: Tensor, token_scores: Sequence[Tensor]) -> Tensor:
        """Multiplies a map ``[B, C, H_l, W_l]`` by the gate of the cell that each site lies in.

        The cell is one of the finest level that is scored and not finer than the map.
        """
        if not self.gate:
            return feature
        scores = next(s for s in token_scores if s.shape[-1] <= feature.shape[-1])
        probability = scores.sigmoid()
        gate = 1.0 + probability - probability.detach()
        gate = enlarged(gate, feature.shape[-1] // gate.shape[-1])
        return feature * gate.unsqueeze(1).to(feature.dtype)


def select(
    scores: Sequence[Tensor], valid: Sequence[Tensor], selector: TokenSelector, halo: int = 0
) -> tuple[Tensor, ...]:
    """Selects tokens of all levels that decide by one ranking, and passes it on to finer levels.

    A cell is worth at least as much as the best of the cells under it, so that what is kept nests
    whatever the rule keeps: coarse levels keep a larger share than fine ones, by as much as the
    content asks for.

    Args:
        scores: logits ``[B, H_l, W_l]`` of the levels that decide, finest first, down to stride 32.
        valid: bool ``[B, H_l, W_l]`` at strides 8, 16, 32, the cells that are not padding.
        selector: the rule.
        halo: cells around the selected ones that are kept too.

    Returns:
        bool ``[B, H_l, W_l]`` at strides 8, 16, 32; nested.
    """
    inside = valid[len(valid) - len(scores) :]
    values = [scores[0].detach().float().masked_fill(~inside[0], -torch.inf)]
    for own, cells in zip(scores[1:], inside[1:], strict=True):
        best_below = F.max_pool2d(values[-1].unsqueeze(1), 2).squeeze(1)
        values.append(
            torch.maximum(own.detach().float(), best_below).masked_fill(~cells, -torch.inf)
        )
    # Coarse levels come first: of equals, a cell is ranked before those under it.
    values, inside = values[::-1], inside[::-1]
    sizes = [cells.long() for cells in inside]
    for finer in valid[: len(valid) - len(scores)]:  # which inherit
        sizes[-1] = sizes[-1] + _count_under(inside[-1], finer)
    kept = selector(
        *(torch.cat([x.flatten(1) for x in levels], dim=1) for levels in (values, inside, sizes))
    )
    parts = kept.split([v[0].numel() for v in values], dim=1)
    masks = [
        grown(part.view(cells.shape), halo) & cells
        for part, cells in zip(parts, inside, strict=True)
    ]
    return inherit(masks[::-1], valid)


def _count_under(cells: Tensor, finer: Tensor) -> Tensor:
    """How many sites of ``finer``, bool ``[B, h, w]``, lie under each cell of ``[B, H, W]``."""
    side = finer.shape[-1] // cells.shape[-1]
    counts = F.avg_pool2d(finer.float().unsqueeze(1), side, divisor_override=1)
    return counts.squeeze(1).long()


def grown(kept: Tensor, cells: int) -> Tensor:
    """Keeps the cells around kept ones too, up to a distance along both axes.

    Args:
        kept: bool ``[B, H, W]``.
        cells: the distance.
    """
    if cells == 0:
        return kept
    size = 2 * cells + 1
    return F.max_pool2d(kept.float().unsqueeze(1), size, 1, cells).squeeze(1) > 0


def inherit(kept: Sequence[Tensor], valid: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Passes a decision on the coarsest levels on to the valid sites under it, level by level."""
    levels = list(kept)
    for finer in reversed(valid[: len(valid) - len(kept)]):
        levels.insert(0, enlarged(levels[0]) & finer)
    return tuple(levels)

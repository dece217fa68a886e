"""Token pruning: score the cells, select some, and let the finer levels inherit the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparse_dset.models.pruner.scorer import TokenScorer, level_index
from sparse_dset.models.pruner.selector import TokenSelector


@dataclass(frozen=True)
class Decision:
    """What the pruner decided.

    Attributes:
        token_scores: logits ``[B, H, W]`` of the stride-32 cells.
        kept: bool ``[B, H_l, W_l]`` per level, finest first; nested.
    """

    token_scores: Tensor
    kept: tuple[Tensor, ...]


class Pruner(nn.Module):
    """Scorer and selector.

    Args:
        in_channels: channels of the backbone's levels, finest first.
        selector: the rule by which cells are kept.
        levels, hidden: see ``TokenScorer``.
        gate: let the detection loss train the scorer: kept features are multiplied by a gate
            whose value is 1 and whose gradient is that of the score (straight-through).
        scatter_levels: the levels that ``dense_scatter`` prunes; DSET prunes s5 only.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        selector: TokenSelector,
        levels: Sequence[str] = ("s3", "s4", "s5"),
        hidden: int = 64,
        gate: bool = False,
        scatter_levels: Sequence[str] = ("s5",),
    ) -> None:
        super().__init__()
        self.scorer = TokenScorer(in_channels, levels, hidden)
        self.selector = selector
        self.gate = gate
        self.scatter_levels = tuple(level_index(name) for name in scatter_levels)

    def forward(
        self, features: Sequence[Tensor], valid: Sequence[Tensor], selector: TokenSelector
    ) -> Decision:
        """Decides.

        Args:
            features: backbone maps, finest first, zero in the padding.
            valid: bool ``[B, H_l, W_l]`` per level, the cells that are not padding.
            selector: normally ``self.selector``, or a relative of it (another keep ratio).
        """
        scores = self.scorer(features)
        return Decision(scores, inherit(selector(scores, valid[-1]), valid))

    def gated(self, feature: Tensor, token_scores: Tensor) -> Tensor:
        """Multiplies a map ``[B, C, H_l, W_l]`` by the gate of the cell that each site lies in."""
        if not self.gate:
            return feature
        probability = token_scores.sigmoid()
        gate = 1.0 + probability - probability.detach()
        scale = feature.shape[-1] // gate.shape[-1]
        gate = gate.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        return feature * gate.unsqueeze(1).to(feature.dtype)


def inherit(kept: Tensor, valid: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Passes a decision at the coarsest level on to the valid sites under it, level by level."""
    levels = [kept & valid[-1]]
    for finer in reversed(valid[:-1]):
        parents = levels[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
        levels.insert(0, parents & finer)
    return tuple(levels)

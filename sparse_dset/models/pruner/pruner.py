"""Token pruning: score the cells, select some, and let the finer levels inherit the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.models.pruner.scorer import LEVELS, TokenScorer, level_index
from sparse_dset.models.pruner.selector import TokenSelector
from sparse_dset.structures import enlarged

STAGES = ("s2", "s3", "s5")


@dataclass(frozen=True)
class Decision:
    """What the pruner decided.

    Attributes:
        token_scores: logits ``[B, H, W]`` of the stride-32 cells.
        kept: bool ``[B, H_l, W_l]`` per level at strides 8, 16 and 32, finest first; nested.
    """

    token_scores: Tensor
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
        hidden, context, local: see ``TokenScorer``.
        halo: cells around the selected ones that are kept too, so that those at an edge see more.
        gate: let the detection loss train the scorer: kept features are multiplied by a gate
            whose value is 1 and whose gradient is that of the score (straight-through).
        scatter_levels: the levels that ``dense_scatter`` prunes; DSET prunes s5 only.
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
        halo: int = 0,
        gate: bool = False,
        scatter_levels: Sequence[str] = ("s5",),
    ) -> None:
        super().__init__()
        if stage not in STAGES:
            raise ValueError(f"pruner.stage must be one of {', '.join(STAGES)}; got {stage!r}")
        self.num_early = level_index(stage) + 1
        early = LEVELS[: self.num_early]
        if levels is None:
            levels = early if stage != "s5" else LEVELS[1:]
        late = [name for name in levels if level_index(name) >= self.num_early]
        if late:
            raise ValueError(
                f"pruner.levels names {late[0]}, which is not there yet at pruner.stage={stage}: "
                f"choose among {', '.join(early)}"
            )
        if halo < 0:
            raise ValueError(f"pruner.halo must be 0 or more cells, got {halo}")
        self.scorer = TokenScorer(in_channels, levels, hidden, context, local)
        self.selector = selector
        self.halo = halo
        self.gate = gate
        self.scatter_levels = tuple(level_index(name) - 1 for name in scatter_levels)
        if min(self.scatter_levels, default=0) < 0:
            raise ValueError("pruner.scatter_levels are among s3, s4, s5")

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
        scores = self.scorer(features, valid[-1])
        selected = grown(selector(scores, valid[-1]), self.halo)
        return Decision(scores, inherit(selected, valid))

    def gated(self, feature: Tensor, token_scores: Tensor) -> Tensor:
        """Multiplies a map ``[B, C, H_l, W_l]`` by the gate of the cell that each site lies in."""
        if not self.gate:
            return feature
        probability = token_scores.sigmoid()
        gate = 1.0 + probability - probability.detach()
        scale = feature.shape[-1] // gate.shape[-1]
        gate = enlarged(gate, scale)
        return feature * gate.unsqueeze(1).to(feature.dtype)


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


def inherit(kept: Tensor, valid: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Passes a decision at the coarsest level on to the valid sites under it, level by level."""
    levels = [kept & valid[-1]]
    for finer in reversed(valid[:-1]):
        levels.insert(0, enlarged(levels[0]) & finer)
    return tuple(levels)

"""Scores the cells of some levels: how likely is each to matter for detection?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.checks import check_number
from sparse_dset.structures import enlarged

LEVELS = ("s2", "s3", "s4", "s5")
"""Names of the maps at strides 4, 8, 16 and 32."""


def level_index(name: str) -> int:
    """Returns the position of a level name ("s2" ... "s5"), finest first."""
    if name not in LEVELS:
        raise ValueError(f"levels are called {', '.join(LEVELS)}; got {name!r}")
    return LEVELS.index(name)


class TokenScorer(nn.Module):
    """An MLP over what the chosen levels show of each cell (mean and maximum of the cell).

    What a cell of 32 x 32 pixels holds is easier to tell before it is pooled: with ``local``, small
    convolutions look at each level's own sites first.

    Args:
        in_channels: channels of the backbone's levels, finest first.
        levels: which of them to look at; DSET looks at s5 only, where small objects are hardest to
            see.
        hidden: width of the hidden layer.
        context: how far a cell sees, in cells of a side, odd: 1 is the cell alone, 3 its
            neighbours too.
        local: channels of the convolutions before the pooling; 0: none, as in DSET.
        finest: the finest level whose cells are scored, "s3", "s4" or "s5"; every level from there
            to s5 has an MLP of its own.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        levels: Sequence[str],
        hidden: int,
        context: int = 1,
        local: int = 0,
        finest: str = "s5",
    ) -> None:
        super().__init__()
        self.levels = sorted(level_index(name) for name in levels)
        if not self.levels:
            raise ValueError(f"pruner.levels is empty: name at least one of {', '.join(LEVELS)}")
        check_number("pruner.hidden", hidden, at_least=1, whole=True)
        check_number("pruner.context", context, at_least=1, whole=True)
        check_number("pruner.local", local, at_least=0, whole=True)
        if context % 2 == 0:
            raise ValueError(f"pruner.context must be odd, got {context}")
        if finest not in LEVELS[1:]:
            raise ValueError(f"pruner.finest must be s3, s4 or s5, got {finest!r}")
        self.scored = range(level_index(finest), len(LEVELS))
        self.local = nn.ModuleList(Look(in_channels[i], local) for i in self.levels if local)
        width = 2 * sum(local or in_channels[i] for i in self.levels)
        self.heads = nn.ModuleList(CellHead(width, hidden, context) for _ in self.scored)

    def forward(self, features: Sequence[Tensor], valid: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns token scores: logits ``[B, H_l, W_l]`` of the scored levels, finest first.

        Args:
            features: backbone maps ``[B, C_l, H_l, W_l]``, finest first, zero in the padding; those
                of coarser levels that are not looked at may be missing.
            valid: bool ``[B, H_l, W_l]`` at strides 8, 16, 32, the cells that are not padding.
        """
        seen = [features[i] for i in self.levels]
        if self.local:
            inside = [valid[i - 1] if i else enlarged(valid[0]) for i in self.levels]
            seen = [look(x, m) for look, x, m in zip(self.local, seen, inside, strict=True)]
        scores = []
        for level, head in zip(self.scored, self.heads, strict=True):
            pooled = [_pooled(x, level - i) for i, x in zip(self.levels, seen, strict=True)]
            scores.append(head(torch.cat(pooled, dim=1), valid[level - 1]))
        return tuple(scores)


def score_by_norm(scorer: TokenScorer, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Scores cells by the norm of what the scorer would look at: a baseline without training.

    Returns:
        What ``TokenScorer.forward`` returns: the logarithm of the mean norm within a cell, so that
        its sigmoid is in (0, 1).
    """
    norms = {i: features[i].detach().norm(dim=1, keepdim=True) for i in scorer.levels}
    return tuple(
        torch.stack([_pooled(norm, level - i)[:, 0] for i, norm in norms.items()])
        .mean(0)
        .clamp(min=1e-6)
        .log()
        for level in scorer.scored
    )


def score_at_random(valid: Sequence[Tensor], num_scored: int) -> tuple[Tensor, ...]:
    """Scores cells at random, by PyTorch's generator: a baseline without training."""
    return tuple(torch.rand(v.shape, device=v.device).logit(1e-6) for v in valid[-num_scored:])


class CellHead(nn.Module):
    """Scores the cells of one level.

    Args:
        width: channels of what is seen of a cell.
        hidden, context: see ``TokenScorer``.
    """

    def __init__(self, width: int, hidden: int, context: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        last = nn.Linear(hidden, 1)
        nn.init.constant_(last.bias, -2.0)  # most cells are empty
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)
        self.mix = None
        if context > 1:
            self.mix = nn.Conv2d(hidden, hidden, context, padding=context // 2)
            nn.init.zeros_(self.mix.weight)  # at first each cell speaks for itself
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, cells: Tensor, valid: Tensor) -> Tensor:
        """Returns logits ``[B, H, W]`` of cells ``[B, C, H, W]``; padding is no context."""
        hidden = self.mlp[:2](self.norm(cells.permute(0, 2, 3, 1)))
        if self.mix is not None:
            around = (hidden * valid.unsqueeze(-1)).permute(0, 3, 1, 2)
            hidden = hidden + F.gelu(self.mix(around)).permute(0, 2, 3, 1)
        return self.mlp[2](hidden).squeeze(-1)


class Look(nn.Module):
    """Small convolutions over a backbone map."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Looks at a map ``[B, C, H, W]`` that is zero outside of ``inside`` ``[B, H, W]``."""
        x = F.gelu(self.first(self.reduce(x))) * inside.unsqueeze(1)
        return F.gelu(self.second(x))


def _pooled(x: Tensor, levels: int) -> Tensor:
    """Mean and maximum of a map within the cells so many levels coarser (finer if negative)."""
    if levels < 0:
        return F.interpolate(x, scale_factor=float(2**-levels)).repeat(1, 2, 1, 1)
    size = 2**levels
    return torch.cat([F.avg_pool2d(x, size), F.max_pool2d(x, size)], dim=1)
